"""Which BN layers can be computed together with the layer before them."""

from __future__ import annotations

from typing import Any

import keras

from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.linear import channel_axis, is_linear
from keras_bn.surgery._conversions import is_keras
from keras_bn.surgery._linear import misplaces_bias
from keras_bn.surgery.graph import Call


def join(calls: list[Call], chosen: set[str]) -> tuple[dict[int, Any], dict[int, str]]:
    """The layers that chosen BN layers can be joined with.

    Args:
        calls: every call of the model.
        chosen: the paths of the BN layers to join, those of their first calls.

    Returns:
        For the `id` of a BN layer the layer before it, and for those that cannot be joined why not.
    """
    by_layer: dict[int, list[Call]] = {}
    for call in calls:
        by_layer.setdefault(id(call.layer), []).append(call)
    partners: dict[int, Any] = {}
    reasons: dict[int, str] = {}
    for call in calls:
        if call.path not in chosen:
            continue
        producer = call.producers[0] if call.producers else None
        same = by_layer[id(call.layer)]
        reason = _obstacle(call, producer) or _shared(same, by_layer.get(id(producer and producer.layer), []))
        if producer is None or reason:
            reasons[id(call.layer)] = reason
        else:
            partners[id(call.layer)] = producer.layer
    return partners, reasons


def normalizes_plainly(layer: Any) -> bool:
    """Whether its inference is that of BatchNormalization: a subclass may do anything else."""
    if not isinstance(layer, BatchNormalization):
        return is_keras(layer)
    return all(
        getattr(type(layer), name) is getattr(BatchNormalization, name)
        for name in ("call", "call_inference", "inference_affine")
    )


def _obstacle(call: Call, producer: Call | None) -> str:
    """Why a BN layer cannot be joined with what comes before it; empty if it can be."""
    if not normalizes_plainly(call.layer):
        return f"{type(call.layer).__name__} may not normalize as BatchNormalization does"
    if producer is None or producer.node.is_input:
        return "no layer comes before it"
    if not is_linear(producer.layer):
        return f"{producer.path} before it is no plain convolution or dense layer"
    if producer.layer.activation is not keras.activations.linear:
        return f"{producer.path} before it has an activation"
    if producer.layer.activity_regularizer is not None:
        return f"{producer.path} before it has an activity regularizer"
    if producer.is_output:
        return f"{producer.path} before it is an output"
    if len(producer.consumers) > 1:
        return f"{producer.path} before it has another consumer"
    shape = producer.node.outputs[0].shape
    if call.layer.axis % len(shape) != channel_axis(producer.layer, len(shape)):
        return f"it normalizes another axis than the channels of {producer.path}"
    if producer.layer.use_bias and misplaces_bias(producer.layer, shape):
        return f"{producer.path} may have its bias added along the last axis"
    return ""


def _shared(normalized: list[Call], produced: list[Call]) -> str:
    """Why layers that are called several times cannot be joined: one also stands without the other."""
    before = {id(producer) for call in normalized for producer in call.producers[:1]}
    if before != {id(call) for call in produced}:
        return f"it or {produced[0].layer.name} before it is also called elsewhere"
    return ""
