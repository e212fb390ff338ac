"""Which BN layers can be computed together with the layer before them."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import keras

from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.linear import KINDS, channel_axis, is_linear
from keras_bn.surgery._conversions import is_keras
from keras_bn.surgery._linear import misplaces_bias, why_not_plain
from keras_bn.surgery.graph import Call


def join(
    calls: list[Call], chosen: Container[int], elsewhere: Container[int]
) -> tuple[dict[int, Any], dict[int, str]]:
    """The layers that chosen BN layers can be joined with.

    Args:
        calls: every call of the model.
        chosen: identities of the BN layers to join.
        elsewhere: identities of layers that are called where no call can be seen.

    Returns:
        For the `id` of a BN layer the layer before it, and for those that cannot be joined why not.
    """
    by_layer: dict[int, list[Call]] = {}
    for call in calls:
        by_layer.setdefault(id(call.own_layer), []).append(call)
    partners: dict[int, Any] = {}
    reasons: dict[int, str] = {}
    for key, same in by_layer.items():
        if key not in chosen:
            continue
        call = same[0]
        producer = call.producers[0] if call.producers else None
        before = None if producer is None else producer.own_layer
        reason = _obstacle(call, producer) or _shared(same, by_layer.get(id(before), []))
        if before is None or reason:
            reasons[key] = reason
        elif key in elsewhere or id(before) in elsewhere:
            reasons[key] = f"it or {before.name} before it is also called elsewhere"
        else:
            partners[key] = before
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
    normalization = call.own_layer
    if not normalizes_plainly(normalization):
        return f"{type(normalization).__name__} may not normalize as BatchNormalization does"
    if producer is None or producer.node.is_input:
        return "no layer comes before it"
    wrapped = normalization is not call.layer
    layer = producer.own_layer if wrapped else producer.layer
    if type(layer) in KINDS and not is_linear(layer):
        return f"{producer.path} before it {why_not_plain(layer) or 'has LoRA weights'}"
    if not is_linear(layer) or wrapped != (layer is not producer.layer):
        return f"{producer.path} before it is no plain convolution or dense layer"
    if layer.activation is not keras.activations.linear:
        return f"{producer.path} before it has an activation"
    if layer.activity_regularizer is not None:
        return f"{producer.path} before it has an activity regularizer"
    if producer.is_output:
        return f"{producer.path} before it is an output"
    if len(producer.consumers) > 1:
        return f"{producer.path} before it has another consumer"
    shape = producer.node.outputs[0].shape
    shape = (shape[0], *shape[2:]) if wrapped else shape
    if normalization.axis % len(shape) != channel_axis(layer, len(shape)):
        return f"it normalizes another axis than the channels of {producer.path}"
    if layer.use_bias and misplaces_bias(layer, shape):
        return f"{producer.path} may have its bias added along the last axis"
    return ""


def _shared(normalized: list[Call], produced: list[Call]) -> str:
    """Why layers that are called several times cannot be joined: one also stands without the other."""
    before = {id(producer) for call in normalized for producer in call.producers[:1]}
    if before != {id(call) for call in produced}:
        return f"it or {produced[0].own_layer.name} before it is also called elsewhere"
    return ""
