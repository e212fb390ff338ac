"""Where `retrofit` may put a normalization, and why not elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.linear import KINDS
from keras_bn.surgery._cloning import layers_in
from keras_bn.surgery._inlining import Inlined
from keras_bn.surgery.graph import Call, calls, flatten, graph_in
from keras_bn.surgery.report import Row
from keras_bn.surgery.selection import Layers, select

_LAYERS = keras.layers
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
        if getattr(self.layer, "data_format", None) != "channels_first":
            return -1
        return 1 if self.layer is self.call.layer else 2

    @property
    def layer(self) -> Any:
        """The convolution or dense layer itself, perhaps in a TimeDistributed."""
        return self.call.own_layer


def places(inlined: Inlined, layers: Layers, before_activation: bool) -> tuple[list[Place], list[Row]]:
    """Where to insert, and a row for each layer that is left alone.

    Raises:
        KerasBNError: if `layers` chooses nothing.
    """
    found = calls(inlined.model, inlined.paths)
    flat = list(flatten(found))
    candidates = [c for c in flat if not c.node.is_input and graph_in(c.layer) is None]
    chosen = select([_Candidate(call.own_layer, call.own_path) for call in candidates], layers)
    # A layer that is given by its very name is one that its user wants normalized.
    outputs = set(_output_paths(found)) - {call.path for call in flat if _is_named(call, layers)}
    reasons: dict[str, str] = {}
    for call in candidates:
        if isinstance(call.own_layer, KINDS):
            reasons[call.path] = _obstacle(call, chosen, outputs)
        elif layers is not None and call.own_path in chosen:
            reasons[call.path] = f"a normalization does not go after a {type(call.own_layer).__name__}"
    # A layer that is called twice is one layer: its activation is split out at every call or at none.
    obstructed: dict[int, str] = {}
    for call in flat:
        if reason := reasons.get(call.path):
            obstructed.setdefault(id(call.own_layer), f"its call {call.path} {_of_a_call(reason)}")
    result, rows = [], []
    for call in flat:
        if call.path in reasons:
            if reason := reasons[call.path] or obstructed.get(id(call.own_layer)):
                rows.append(Row(call.own_path, type(call.own_layer).__name__, "left alone", reason))
            else:
                result.append(_place(call, before_activation))
        elif isinstance(call.layer, keras.Layer) and graph_in(call.layer) is None:
            rows += _hidden(call, inlined)
    return result, rows


@dataclass(frozen=True)
class _Candidate:
    """A layer that may be chosen."""

    layer: Any
    path: str


def _of_a_call(reason: str) -> str:
    """A reason as what is said of a call."""
    return f"is {reason}" if reason.startswith(("already", "not ")) else reason


def fused_activation(layer: Any) -> Any:
    """The activation a layer ends in, None if it is linear."""
    activation = getattr(layer, "activation", None)
    return None if activation is keras.activations.linear else activation


def _place(call: Call, before_activation: bool) -> Place:
    fused = fused_activation(call.own_layer)
    if before_activation:
        return Place(call, call, fused)
    follower = call.consumers[0] if fused is None and len(call.consumers) == 1 else None
    return Place(call, follower if follower and _is_activation(follower) else call, None)


def _obstacle(call: Call, chosen: set[str], outputs: set[str]) -> str:
    if call.own_path not in chosen:
        return "not among the chosen layers"
    if call.path in outputs:
        return "gives an output of the model"
    if normalization := _normalization_after(call):
        layer = normalization.own_layer
        return f"already followed by {type(layer).__name__} {layer.name!r}"
    activation = fused_activation(call.own_layer)
    if isinstance(activation, keras.Layer) and activation.weights:
        return f"its activation {activation.name!r} has weights; make it a layer of its own first"
    return ""


def _hidden(call: Call, inlined: Inlined) -> list[Row]:
    """Rows for the layers inside a wrapper or composite layer."""
    kind = type(call.layer).__name__
    why = inlined.closed.get(call.path, f"{kind} calls it in code of its own")
    return [
        Row(
            inlined.paths.get(id(inner), f"{call.path}/{path}"),
            type(inner).__name__,
            "left alone",
            f"inside {kind}, whose graph cannot be seen: {why}",
        )
        for path, inner in layers_in(call.layer)
        if isinstance(inner, KINDS)
    ]


def _output_paths(found: list[Call]) -> Iterator[str]:
    """The calls from which a value reaches an output without another layer that has weights."""
    pending = [call for call in found if call.is_output]
    seen: set[int] = set()
    while pending:
        call = pending.pop()
        if id(call) in seen:
            continue
        seen.add(id(call))
        yield call.path
        if call.inner:
            ends = [inner for inner in call.inner if inner.is_output]
            pending += ends
            if not any(_has_weights(each) for each in flatten(call.inner)):
                pending += call.producers
        elif not _has_weights(call) and not _pools_features(call):
            pending += call.producers


def _is_named(call: Call, layers: Layers) -> bool:
    """Whether `layers` has the name or path of a layer itself, not a pattern, class or predicate."""
    given = layers if isinstance(layers, (list, tuple, set)) else (layers,)
    return any(
        name in (call.own_layer.name, call.path, call.own_path) for name in given if isinstance(name, str)
    )


def _pools_features(call: Call) -> bool:
    """Whether it is the maximum over a window of rectified values: features, as of VGG, and no answers."""
    if not isinstance(call.layer, (_LAYERS.MaxPooling1D, _LAYERS.MaxPooling2D, _LAYERS.MaxPooling3D)):
        return False
    producer = call.producers[0].own_layer
    return isinstance(producer, _LAYERS.ReLU) or fused_activation(producer) is keras.activations.relu


def _has_weights(call: Call) -> bool:
    return bool(getattr(call.layer, "weights", []))


def _normalization_after(call: Call) -> Call | None:
    pending = list(call.consumers)
    while pending:
        consumer = pending.pop(0)
        if isinstance(consumer.own_layer, NORMALIZATIONS):
            return consumer
        if _keeps_values(consumer):
            pending += consumer.consumers
    return None


def _keeps_values(call: Call) -> bool:
    """Whether it has no weights and as many values come out as go in: activations, reshapes, dropout."""
    tensors = call.node.input_tensors
    if len(tensors) != 1 or graph_in(call.layer) is not None or _has_weights(call):
        return False
    before, after = tensors[0].shape, call.node.outputs[0].shape
    return _size(before) == _size(after)


def _size(shape: tuple[int | None, ...]) -> tuple[int, int]:
    return math.prod(length or 1 for length in shape), shape.count(None)


def _is_activation(call: Call) -> bool:
    kinds = (_LAYERS.Activation, _LAYERS.ReLU, _LAYERS.LeakyReLU, _LAYERS.PReLU, _LAYERS.ELU)
    return isinstance(call.own_layer, kinds)
