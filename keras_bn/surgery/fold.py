"""BN absorbed into the layers around it, for inference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_bn._keras import flatten_layers
from keras_bn.errors import KerasBNError
from keras_bn.layers.channel_affine import ChannelAffine
from keras_bn.layers.linear import is_linear
from keras_bn.surgery._affine import Affine, Blocked, affine_of, after, before
from keras_bn.surgery._comparison import compare
from keras_bn.surgery._linear import Linear, misplaces_bias
from keras_bn.surgery.freeze import unfrozen
from keras_bn.surgery.graph import Call, is_graph, losses, rewrite, walk
from keras_bn.surgery.normalizations import in_training_mode, is_batch_normalization
from keras_bn.surgery.report import Report, Row, SurgeryResult

# What becomes of calls, by path: a BN layer that is merged, a layer with other weights.
Changes: TypeAlias = "dict[str, Affine | Linear]"


def fold(model: keras.Model) -> SurgeryResult:
    """Absorb every BN layer into its neighbours: the result is the same function at inference, with less to
    do.

    At inference BN is x * scale + offset, with scale = gamma / sqrt(moving_variance + epsilon) and offset =
    beta - moving_mean * scale. After a layer W x + b it turns W into W scale and b into b scale + offset;
    before one, W into scale W and b into b + offset W. Both are exact in real arithmetic; they are computed
    in float64 and rounded once.

    BN goes into the layer before it (Conv1D/2D/3D, also grouped, transposed, depthwise and separable;
    Dense; another BN), else into all of those after it. Between the two may lie what a per-channel map
    passes through: cropping, average pooling, upsampling, reshaping, dropout, concatenation on the way
    back, zero padding if the offset is zero. A layer that pads with zeros takes up no offset from before.
    What cannot be absorbed becomes one `keras_bn.ChannelAffine`. Layers keep their names; a BN layer that
    was an output leaves an Identity of its name.

    The result is for inference: trained on, it is a network without BN.

    Args:
        model: Functional or Sequential, with Keras's BN layers or ours. It is left as it is. One without
            any is copied.

    Returns:
        A new model and a report of what went where, and what not and why; `report.difference` is the
        largest change of an output on two examples of noise, None where the model does not take floats.

    Raises:
        KerasBNError: a BN layer runs in training mode, or has NaN or no positive variance in it; folded
            weights overflow their dtype; or the model is subclassed or not built.

    >>> dense, bn = keras.layers.Dense(2, name="dense"), keras.layers.BatchNormalization(name="bn")
    >>> fold(keras.Sequential([keras.Input((4,)), dense, bn])).report.rows[0]
    Row(layer='bn', kind='BatchNormalization', action='folded', reason='into dense', difference=None)
    """
    model = unfrozen(model)
    planned = _Plan(model)
    result = rewrite(model, planned.edit)
    difference = _difference(model, result) if planned.rows else None
    return SurgeryResult(result, Report("fold", tuple(planned.rows), difference, losses(model, result)))


def plan(model: keras.Model) -> tuple[Row, ...]:
    """The rows of `fold(model).report`, without folding.

    Raises:
        KerasBNError: as `fold`, but for weights that overflow.
    """
    return tuple(_Plan(unfrozen(model)).rows)


class _Plan:
    """Where every BN layer of a model goes."""

    def __init__(self, model: keras.Model) -> None:
        found = list(walk(model))
        if in_training := in_training_mode(model):
            raise KerasBNError(
                f"{in_training[0]!r} is called with training=True, so it normalizes by the batch it is in "
                f"and "
                "cannot be folded; build the model without that argument."
            )
        self.rows: list[Row] = []
        self.absorbed: set[str] = set()
        self._uses = Counter(id(call.layer) for call in found)
        self._named: set[str] = set()
        self._state: Changes = {}
        for call in found:
            if is_batch_normalization(call.layer):
                self._state[call.path] = affine_of(call)
        for call in found:
            state = self._state.get(call.path)
            if isinstance(state, Affine):
                self.rows.append(self._place(call, state))
            elif isinstance(call.layer, keras.Layer) and not is_graph(call.layer):
                self.rows += _hidden(call)

    def edit(self, call: Call, copy: Callable[..., Any]) -> list[keras.Layer] | None:
        """What stands in the new model for a call of the old one, as `rewrite` asks."""
        if call.path in self.absorbed:
            if not call.is_output or "/" in call.path:
                return []
            return [keras.layers.Identity(name=self._name(call), dtype=call.layer.dtype_policy)]
        state = self._state.get(call.path)
        if isinstance(state, Linear):
            return [copy(call.layer, weights=state.weights(), use_bias=state.bias is not None)]
        if isinstance(state, Affine):
            layer = ChannelAffine(call.layer.axis, name=self._name(call), dtype=call.layer.dtype_policy)
            layer.build(call.node.input_tensors[0].shape)
            layer.set_weights(state.vectors(call.layer.axis))
            return [layer]
        return None

    def _place(self, call: Call, affine: Affine) -> Row:
        kind = type(call.layer).__name__
        blocked = []
        searches: tuple[Callable[[], Any], ...] = (
            lambda: self._into_producers(call, [affine]),
            lambda: self._into_consumers(call, affine),
        )
        for search in searches:
            try:
                changes = search()
            except Blocked as reason:
                blocked.append(str(reason))
                continue
            self._state.update(changes)
            self.absorbed.add(call.path)
            return Row(call.path, kind, "folded", "into " + ", ".join(changes))
        return Row(call.path, kind, "multiply-add", f"before it, {blocked[0]}; after it, {blocked[1]}")

    def _into_producers(self, call: Call, affines: list[Affine]) -> Changes:
        """The changes that make the producers of `call` take up maps on its inputs."""
        changes: Changes = {}
        # A mask comes after the inputs proper, and is no matter of values.
        for producer, affine in zip(call.producers, affines, strict=False):
            if producer.is_output:
                raise Blocked(f"{producer.path} is an output")
            if len(producer.consumers) > 1:
                raise Blocked(f"{producer.path} has another consumer")
            if producer.path in self.absorbed:
                changes |= self._into_producers(producer, [affine])
            elif (state := self._taking(producer)) is not None:
                changes[producer.path] = _representable(producer, state.then(affine))
            else:
                changes |= self._into_producers(producer, before(producer, affine))
        return changes

    def _into_consumers(self, call: Call, affine: Affine) -> Changes:
        """The changes that make all consumers of `call` take up a map on its output."""
        if call.is_output:
            raise Blocked(f"{call.path} is an output")
        changes: Changes = {}
        for consumer in call.consumers:
            if consumer.path in self.absorbed:
                changes |= self._into_consumers(consumer, affine)
            elif (state := self._taking(consumer)) is not None:
                changes[consumer.path] = _representable(consumer, state.after(affine))
            else:
                changes |= self._into_consumers(consumer, after(consumer, affine))
        return changes

    def _taking(self, call: Call) -> Affine | Linear | None:
        """What `call` is at this point, None if it is nothing that can take up a map."""
        if call.path in self._state:
            return self._state[call.path]
        if not is_linear(call.layer):
            return None
        if misplaces_bias(call.layer, call.node.outputs[0].shape):
            raise Blocked(f"{call.path} may have its bias added along the last axis")
        if self._uses[id(call.layer)] > 1:
            raise Blocked(f"{call.layer.name} is called {self._uses[id(call.layer)]} times")
        return Linear.of(call.layer, tuple(call.node.input_tensors[0].shape))

    def _name(self, call: Call) -> str:
        """The BN layer's own name, if another call of it has not taken that."""
        name = call.layer.name if call.layer.name not in self._named else call.name_for("affine")
        self._named.add(name)
        return name


def _representable(call: Call, state: Affine | Linear) -> Affine | Linear:
    """`state` itself, if it is still what its layer can hold: a BN layer holds one number per channel."""
    if isinstance(state, Affine):
        state.vectors(call.layer.axis)
    return state


def _hidden(call: Call) -> list[Row]:
    """Rows for BN layers inside a layer that is no graph."""
    kind = type(call.layer).__name__
    return [
        Row(f"{call.path}/{layer.name}", type(layer).__name__, "left alone", f"inside {kind}, not a graph")
        for layer in flatten_layers(call.layer, include_self=False)
        if is_batch_normalization(layer)
    ]


def _difference(model: keras.Model, result: keras.Model) -> float | None:
    """The largest change of an output on two examples of noise, None where the model cannot be asked."""
    if not all(keras.backend.is_float_dtype(tensor.dtype) for tensor in model.inputs):
        return None
    random = np.random.default_rng(0)
    noise = keras.tree.map_structure(
        lambda tensor: random.normal(size=(2, *(n or 64 for n in tensor.shape[1:]))).astype(tensor.dtype),
        model.inputs[0] if isinstance(model, keras.Sequential) else model.input,
    )
    try:
        return compare(model, result, noise, tolerance=np.inf)
    except Exception:  # noise need not make sense to a model, and each backend has errors of its own
        return None
