"""Where `retrofit` may put a normalization, and why not elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from keras_bn._keras import flatten_layers
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.surgery.graph import Call, calls, is_graph, walk
from keras_bn.surgery.report import Row
from keras_bn.surgery.selection import select

_LAYERS = keras.layers
KINDS = (
    _LAYERS.Dense,
    _LAYERS.Conv1D,
    _LAYERS.Conv2D,
    _LAYERS.Conv3D,
    _LAYERS.DepthwiseConv1D,
    _LAYERS.DepthwiseConv2D,
    _LAYERS.SeparableConv1D,
    _LAYERS.SeparableConv2D,
    _LAYERS.Conv1DTranspose,
    _LAYERS.Conv2DTranspose,
    _LAYERS.Conv3DTranspose,
)
NORMALIZATIONS = (
    BatchNormalization,
    *(
        getattr(_LAYERS, f"{kind}Normalization")
        for kind in ("Batch", "Layer", "Group", "Unit", "RMS")
        if hasattr(_LAYERS, f"{kind}Normalization")
    ),
)


@dataclass(frozen=True)
class Place:
    """A normalization to come.

    Attributes:
        call: the convolution or dense layer.
        after: the call to put it after: `call`, or that of the activation layer that follows.
        activation: the activation fused into the layer, to be split out and called afterwards; else None.
    """

    call: Call
    after: Call
    activation: Any

    @property
    def axis(self) -> int:
        """The channel axis of the layer's output."""
        return 1 if getattr(self.call.layer, "data_format", None) == "channels_first" else -1


def places(model: keras.Model, layers: Any, before_activation: bool) -> tuple[list[Place], list[Row]]:
    """Where to insert, and a row for each layer that is left alone.

    Raises:
        KerasBNError: if `layers` chooses nothing.
    """
    flat = list(walk(model))
    chosen = select([c for c in flat if not c.node.is_input and not is_graph(c.layer)], layers)
    outputs = set(_output_paths(calls(model)))
    reasons: dict[str, str] = {}
    for call in flat:
        if isinstance(call.layer, KINDS):
            reasons[call.path] = _obstacle(call, chosen, outputs)
        elif layers is not None and call.path in chosen:
            reasons[call.path] = f"a normalization does not go after a {type(call.layer).__name__}"
    # A layer that is called twice is one layer: its activation is split out at every call or at none.
    obstructed = {id(call.layer): reasons[call.path] for call in flat if reasons.get(call.path)}
    result, rows = [], []
    for call in flat:
        if call.path in reasons:
            if reason := obstructed.get(id(call.layer)):
                rows.append(Row(call.path, type(call.layer).__name__, "left alone", reason))
            else:
                result.append(_place(call, before_activation))
        elif isinstance(call.layer, keras.Layer) and not is_graph(call.layer):
            rows += _hidden(call)
    return result, rows


def fused_activation(layer: Any) -> Any:
    """The activation a layer ends in, None if it is linear."""
    activation = getattr(layer, "activation", None)
    return None if activation is keras.activations.linear else activation


def _place(call: Call, before_activation: bool) -> Place:
    fused = fused_activation(call.layer)
    if before_activation:
        return Place(call, call, fused)
    follower = call.consumers[0] if fused is None and len(call.consumers) == 1 else None
    return Place(call, follower if follower and _is_activation(follower) else call, None)


def _obstacle(call: Call, chosen: set[str], outputs: set[str]) -> str:
    if call.path not in chosen:
        return "not among the chosen layers"
    if call.path in outputs:
        return "gives an output of the model"
    if normalization := _normalization_after(call):
        kind = type(normalization.layer).__name__
        return f"already followed by {kind} {normalization.layer.name!r}"
    activation = fused_activation(call.layer)
    if isinstance(activation, keras.Layer) and activation.weights:
        return f"its activation {activation.name!r} has weights; make it a layer of its own first"
    return ""


def _hidden(call: Call) -> list[Row]:
    """Rows for the layers inside a wrapper or composite layer."""
    inside = [sub for sub in flatten_layers(call.layer, include_self=False) if isinstance(sub, KINDS)]
    reason = f"inside {type(call.layer).__name__}, whose graph cannot be seen"
    return [Row(f"{call.path}/{sub.name}", type(sub).__name__, "left alone", reason) for sub in inside]


def _output_paths(found: list[Call]) -> Iterator[str]:
    """The calls that outputs come from, seen through what only reshapes or activates them."""
    pending = [call for call in found if call.is_output]
    while pending:
        call = pending.pop()
        yield call.path
        if call.inner:
            pending += [inner for inner in call.inner if inner.is_output]
        elif _keeps_values(call):
            pending += call.producers


def _normalization_after(call: Call) -> Call | None:
    pending = list(call.consumers)
    while pending:
        consumer = pending.pop(0)
        if isinstance(consumer.layer, NORMALIZATIONS):
            return consumer
        if _keeps_values(consumer):
            pending += consumer.consumers
    return None


def _keeps_values(call: Call) -> bool:
    """Whether it has no weights and as many values come out as go in: activations, reshapes, dropout."""
    tensors = call.node.input_tensors
    if len(tensors) != 1 or is_graph(call.layer) or getattr(call.layer, "weights", []):
        return False
    before, after = tensors[0].shape, call.node.outputs[0].shape
    return _size(before) == _size(after)


def _size(shape: tuple[int | None, ...]) -> tuple[int, int]:
    return math.prod(length or 1 for length in shape), shape.count(None)


def _is_activation(call: Call) -> bool:
    kinds = (_LAYERS.Activation, _LAYERS.ReLU, _LAYERS.LeakyReLU, _LAYERS.PReLU, _LAYERS.ELU)
    return isinstance(call.layer, kinds)
