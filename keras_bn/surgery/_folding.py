"""Which BN layer goes where when a model is folded: computed first, then applied."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import keras

from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.channel_affine import ChannelAffine
from keras_bn.layers.linear import CONVOLUTIONS, DEPTHWISE, KINDS
from keras_bn.surgery._affine import (
    Affine,
    Blocked,
    affine_of,
    after,
    before,
    cancellation,
    inference_affine,
    normalized_axis,
)
from keras_bn.surgery._checks import check_model
from keras_bn.surgery._cloning import Clone, exchanged_in_place, layers_in
from keras_bn.surgery._copying import called_alike, compile_alike
from keras_bn.surgery._inlining import Inlined, inlined_exactly
from keras_bn.surgery._linear import Linear, Stepwise, misplaces_bias, why_not_plain
from keras_bn.surgery._noise import called_in_training
from keras_bn.surgery.graph import Call, graph_in, rewrite, walk
from keras_bn.surgery.normalizations import in_training_mode, is_batch_normalization
from keras_bn.surgery.report import Row

# BN subtracts the mean before the layer after it sums n terms. Folded, the mean is in every term, and the sum
# rounds sqrt(n) / 4 times as much. At 100 times the deviation and n = 1024, that is 2.5e-5 of the output.
_MOST_CANCELLATION = 100

# The result for each call, by path: a BN layer that is merged, or a layer with other weights.
Changes: TypeAlias = "dict[str, Affine | Linear | Stepwise]"


class FoldPlan:
    """Where every BN layer of a model goes.

    Args:
        model: any built model. It is left as it is; the plan has a copy of its own.

    Attributes:
        rows: what happens to each BN layer, and why.
        notes: what was done to the model as a whole.
    """

    def __init__(self, model: keras.Model) -> None:
        check_model(model)
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._model = model
        self._absorbed: set[str] = set()
        self._named: set[str] = set()
        self._state: Changes = {}
        self._pads: dict[str, str] = {}
        self._exchanged: list[tuple[Any, Any]] = []
        self._exchanged_by_holder: dict[int, tuple[Any, list[tuple[Any, Any]]]] = {}
        normalizations = [(path, each) for path, each in layers_in(model) if is_batch_normalization(each)]
        self._graph: Inlined | None = None
        self._clone: Clone | None = None
        try:
            self._graph = _inlined(model, bool(normalizations))
        except KerasBNError as error:  # subclassed, and not to be seen through
            self._clone = Clone(model)
            for path, layer in normalizations:
                self.rows.append(self._exchange(path, self._clone.of(layer), str(error)))
            return
        found = list(walk(self._graph.model, self._graph.paths))
        if in_training := in_training_mode(self._graph.model):
            raise KerasBNError(
                f"{in_training[0]!r} is called with training=True, so model(x) normalizes by the batch "
                "and cannot be folded; build the model without that argument."
            )
        self.notes += self._graph.notes()
        self._calls: dict[int, list[Call]] = {}
        for call in found:
            self._calls.setdefault(id(call.own_layer), []).append(call)
        for call in found:
            layer = call.own_layer
            if is_batch_normalization(layer) and _is_plain(layer):
                self._state[call.path] = affine_of(call)
        seen = set()
        for call in found:
            state, layer = self._state.get(call.path), call.own_layer
            seen.add(id(layer))
            if isinstance(state, Affine):
                self.rows.append(self._place(call, state))
            elif is_batch_normalization(layer):
                reason = f"{type(layer).__name__} may not normalize as BatchNormalization does"
                self.rows.append(Row(call.own_path, type(layer).__name__, "left alone", reason))
            elif isinstance(call.layer, keras.Layer) and graph_in(call.layer) is None:
                self.rows += self._inside(call, seen)
        for path, layer in self._graph.normalizations(normalizations):
            if id(layer) not in seen:
                self.rows.append(Row(path, type(layer).__name__, "left alone", "is never called"))
        for call in found:
            self._place_padding(call)
        if self._exchanged_by_holder:
            self._leave_training_alone()
            self._note_classes()

    def _note_classes(self) -> None:
        """Say what holds a multiply-add that a class does not make itself."""
        kinds = {type(holder).__name__ for holder, pairs in self._exchanged_by_holder.values() if pairs}
        if kinds:
            self.notes.append(
                "Layers of these classes hold a multiply-add where their code makes a BN layer, so the "
                f"result can be exported but not loaded from a .keras file: {', '.join(sorted(kinds))}."
            )

    def apply(self) -> keras.Model:
        """The folded model. A plan is applied once: the result is made of its copy of the model."""
        if self._graph is None:
            assert self._clone is not None
            with exchanged_in_place(self._clone.model, self._exchanged):
                return self._clone.model
        for holder, pairs in self._exchanged_by_holder.values():
            with exchanged_in_place(holder, pairs):
                pass
        result = rewrite(self._graph.model, self._edit, owned=True, paths=self._graph.paths)
        if self._model.compiled and not result.compiled:
            compile_alike(self._model, result)
        return result

    def _edit(self, call: Call, copy: Callable[..., Any]) -> list[keras.Layer] | None:
        """The layers in the new model for a call of the old one, for `rewrite`."""
        if call.path in self._absorbed:
            if not call.is_model_output:
                return []
            return [keras.layers.Identity(name=self._name(call), dtype=call.layer.dtype_policy)]
        if call.path in self._pads or self._is_superfluous(call):
            return []
        state = self._state.get(call.path)
        padding = {"padding": "same"} if call.path in self._pads.values() else {}
        if isinstance(state, Linear):
            return [copy(call.layer, weights=state.weights(), **state.changes, **padding)]
        if padding:
            return [copy(call.layer, **padding)]
        if isinstance(state, Stepwise):
            linear = state.linear
            inner = copy(linear.layer, weights=linear.weights(), **linear.changes)
            return [called_alike(call.layer, inner)]
        if isinstance(state, Affine):
            axis, rank = normalized_axis(call), len(call.node.input_tensors[0].shape)
            last = axis == rank - 1
            policy = call.own_layer.dtype_policy
            layer = ChannelAffine(-1 if last else axis, name=self._name(call), dtype=policy)
            layer.build(call.node.input_tensors[0].shape)
            layer.set_weights(state.vectors(axis))
            return [layer]
        return None

    def _place(self, call: Call, affine: Affine) -> Row:
        path, kind = call.own_path, type(call.own_layer).__name__
        if call.path in self._absorbed:  # with an earlier call of the same layer
            return Row(path, kind, "folded", f"into {call.producers[0].path}")
        blocked = []
        searches: tuple[Callable[[], Any], ...] = (
            lambda: self._into_producers(call, [affine]),
            lambda: self._after(call, affine),
        )
        for search in searches:
            try:
                changes = search()
            except Blocked as reason:
                blocked.append(str(reason))
                continue
            self._state.update(changes)
            self._absorbed.add(call.path)
            return Row(path, kind, "folded", "into " + ", ".join(changes))
        if changes := self._into_shared(call, affine):
            self._state.update(changes)
            self._absorbed.update(each.path for each in self._calls[id(call.own_layer)])
            return Row(path, kind, "folded", f"into {call.producers[0].path}")
        return Row(path, kind, "multiply-add", f"before it, {blocked[0]}; after it, {blocked[1]}")

    def _into_producers(self, call: Call, affines: list[Affine]) -> Changes:
        """The changes that make the producers of `call` take up maps on its inputs."""
        changes: Changes = {}
        # A mask comes after the inputs proper, and is no matter of values.
        for producer, affine in zip(call.producers, affines, strict=False):
            if producer.is_output:
                raise Blocked(f"{producer.path} is an output")
            if len(producer.consumers) > 1:
                raise Blocked(f"{producer.path} has another consumer")
            if producer.path in self._absorbed:
                changes |= self._into_producers(producer, [affine])
            elif (state := self._taking(producer)) is not None:
                changes[producer.path] = _representable(producer, state.then(affine))
            else:
                changes |= self._into_producers(producer, before(producer, affine))
        return changes

    def _after(self, call: Call, affine: Affine) -> Changes:
        """The changes that make the consumers of a BN layer take it up."""
        changes = self._into_consumers(call, affine)
        if all(isinstance(state, Affine) for state in changes.values()):
            return changes
        if (ratio := cancellation(call, affine)) > _MOST_CANCELLATION:
            raise Blocked(
                f"the means are {ratio:.1g} times what BN makes of them, and sums of such terms lose digits"
            )
        return changes

    def _into_shared(self, call: Call, affine: Affine) -> Changes:
        """The changes that make a layer that is called several times take up the map of a BN layer.

        There are none unless the BN layer follows every call of that layer, and nothing else.
        """
        calls = self._calls[id(call.own_layer)]
        producers = [producer for each in calls for producer in each.producers[:1]]
        layers = {id(producer.layer) for producer in producers}
        if any(each.own_layer is not each.layer for each in (*calls, *producers)):
            return {}
        if len(calls) < 2 or len(layers) > 1 or not len(producers) == len(calls) == self._uses(producers[0]):
            return {}
        if any(each.is_output or len(each.consumers) > 1 or each.path in self._state for each in producers):
            return {}
        try:
            linear = self._linear(producers[0])
        except Blocked:
            return {}
        return {} if linear is None else {each.path: linear.then(affine) for each in producers}

    def _into_consumers(self, call: Call, affine: Affine) -> Changes:
        """The changes that make all consumers of `call` take up a map on its output."""
        if call.is_output:
            raise Blocked(f"{call.path} is an output")
        changes: Changes = {}
        for consumer in call.consumers:
            if consumer.path in self._absorbed:
                changes |= self._into_consumers(consumer, affine)
            elif (state := self._taking(consumer)) is not None:
                changes[consumer.path] = _representable(consumer, state.after(affine))
            else:
                changes |= self._into_consumers(consumer, after(consumer, affine))
        return changes

    def _taking(self, call: Call) -> Affine | Linear | Stepwise | None:
        """The present form of `call`, or None if no map can be folded into it."""
        if call.path in self._state:
            return self._state[call.path]
        linear = self._linear(call)
        if linear is not None and self._uses(call) > 1:
            raise Blocked(f"{call.own_layer.name} is called {self._uses(call)} times")
        return linear

    def _linear(self, call: Call) -> Linear | Stepwise | None:
        layer = call.own_layer
        if type(layer) not in KINDS:
            return None
        if reason := why_not_plain(layer):
            raise Blocked(f"{call.path} {reason}")
        stepwise = layer is not call.layer
        shapes = [tuple(t.shape) for t in (call.node.input_tensors[0], call.node.outputs[0])]
        inputs, outputs = [(s[0], *s[2:]) if stepwise else s for s in shapes]
        if misplaces_bias(layer, outputs):
            raise Blocked(f"{call.path} may have its bias added along the last axis")
        linear = Linear.of(layer, inputs)
        return Stepwise(linear) if stepwise else linear

    def _uses(self, call: Call) -> int:
        """How often the layer of a call is called."""
        return len(self._calls[id(call.own_layer)])

    def _name(self, call: Call) -> str:
        """The BN layer's own name, if another call of it has not taken that."""
        name = call.layer.name if call.layer.name not in self._named else call.name_for("affine")
        self._named.add(name)
        return name

    def _is_superfluous(self, call: Call) -> bool:
        """Whether it is an Identity of a layer that was inlined; some of these cannot be saved."""
        assert self._graph is not None
        inlined = bool(self._graph.opened) and not call.is_output
        return inlined and type(call.layer) is keras.layers.Identity and len(call.node.input_tensors) == 1

    def _inside(self, call: Call, seen: set[int]) -> list[Row]:
        """Rows for BN layers inside a layer whose graph cannot be seen."""
        assert self._graph is not None
        rows = []
        for path, layer in layers_in(call.layer):
            if is_batch_normalization(layer) and id(layer) not in seen:
                seen.add(id(layer))
                kind = type(call.layer).__name__
                why = self._graph.closed.get(call.path, f"{kind} calls it in code of its own")
                path = self._graph.paths.get(id(layer), f"{call.path}/{path}")
                rows.append(self._exchange(path, layer, f"inside {call.path} ({kind}): {why}"))
        self._exchanged_by_holder[id(call.layer)] = call.layer, self._exchanged
        self._exchanged = []
        return rows

    def _exchange(self, path: str, layer: Any, reason: str) -> Row:
        """One multiply-add in the place of a BN layer, wherever that is."""
        kind = type(layer).__name__
        if not layer.built:
            return Row(path, kind, "left alone", "is never called")
        if not _is_plain(layer):
            return Row(path, kind, "left alone", f"{kind} may not normalize as BatchNormalization does")
        scale, offset = inference_affine(layer, path)
        new = ChannelAffine(layer.axis, name=layer.name, dtype=layer.dtype_policy)
        shape: list[int | None] = [None] * layer.input_spec.ndim
        shape[layer.axis] = len(scale)
        new.build(tuple(shape))
        new.set_weights([scale, offset])
        self._exchanged.append((layer, new))
        return Row(path, kind, "multiply-add", reason)

    def _leave_training_alone(self) -> None:
        """Keep BN layers that their holders call with training=True, which running the model shows."""
        assert self._graph is not None
        pairs = [pair for _, pairs in self._exchanged_by_holder.values() for pair in pairs]
        training = {id(layer) for layer in called_in_training(self._graph.model, [old for old, _ in pairs])}
        paths = {self._graph.paths.get(id(old)) for old, _ in pairs if id(old) in training}
        reason = "is called with training=True, so it normalizes by the batch it is in"
        self.rows = [
            replace(row, action="left alone", reason=reason) if row.layer in paths else row
            for row in self.rows
        ]
        self._exchanged_by_holder = {
            key: (holder, [(old, new) for old, new in pairs if id(old) not in training])
            for key, (holder, pairs) in self._exchanged_by_holder.items()
        }

    def _place_padding(self, call: Call) -> None:
        """Let the convolution after a padding layer pad as the layer did, where "same" is exactly that."""
        if not isinstance(call.layer, _PADDINGS) or call.is_output or len(call.consumers) != 1:
            return
        consumer = call.consumers[0]
        layer = consumer.layer
        if type(layer) not in (*CONVOLUTIONS, *DEPTHWISE) or why_not_plain(layer) or layer.padding != "valid":
            return
        if self._uses(consumer) > 1 or self._uses(call) > 1:
            return
        shape, rank = call.node.input_tensors[0].shape, len(layer.kernel_size)
        first = layer.data_format == "channels_first"
        if first != (getattr(call.layer, "data_format", "channels_last") == "channels_first"):
            return
        lengths = shape[2:] if first else shape[1:-1]
        paddings = call.layer.padding if rank > 1 else (call.layer.padding,)
        sizes = zip(lengths, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
        if all(length is not None for length in lengths) and [tuple(p) for p in paddings] == [
            _same_padding(*size) for size in sizes
        ]:
            self._pads[call.path] = consumer.path
            reason = f'into {consumer.path}, whose padding "same" adds the same zeros'
            self.rows.append(Row(call.path, type(call.layer).__name__, "absorbed", reason))


def _representable(call: Call, state: Affine | Linear | Stepwise) -> Affine | Linear | Stepwise:
    """`state` itself, if it is still what its layer can hold: a BN layer holds one number per channel."""
    if isinstance(state, Affine):
        state.vectors(normalized_axis(call))
    return state


_PADDINGS = (keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D, keras.layers.ZeroPadding3D)


def _same_padding(length: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """The zeros that padding "same" adds before and after an axis."""
    total = max((math.ceil(length / stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
    return total // 2, total - total // 2


def _inlined(model: keras.Model, any_normalization: bool) -> Inlined:
    """The model with its BN layers in sight, as far as inlining leaves its outputs as they are."""
    if not any_normalization:
        return Inlined(model, lambda layer: False)
    return inlined_exactly(model, is_batch_normalization)


def _is_plain(layer: Any) -> bool:
    """Whether its inference is that of BatchNormalization: a subclass may do anything else."""
    if isinstance(layer, BatchNormalization):
        return type(layer).call is BatchNormalization.call or type(layer).__module__.startswith("keras_bn.")
    return type(layer).call is keras.layers.BatchNormalization.call
