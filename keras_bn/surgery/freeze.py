"""Fine-tuning with frozen statistics: join BN with the layer before it, and undo this."""

from __future__ import annotations

from typing import Any

import keras

from keras_bn._keras import flatten_layers
from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.frozen import FrozenBatchNormalization
from keras_bn.layers.joined import JoinedBatchNormalization
from keras_bn.surgery._checks import check_weights
from keras_bn.surgery._cloning import exchanged_in_place, layers_in
from keras_bn.surgery._conversions import is_keras, shared_options, weights_for
from keras_bn.surgery._copying import Copies
from keras_bn.surgery._joinable import join
from keras_bn.surgery._noise import change_on_noise
from keras_bn.surgery._targets import built
from keras_bn.surgery.graph import Call, is_graph, losses, rewrite, walk
from keras_bn.surgery.normalizations import in_training_mode, normalization_calls
from keras_bn.surgery.report import Report, Row, SurgeryResult
from keras_bn.surgery.selection import Layers, select


def freeze(model: keras.Model, layers: Layers = None) -> SurgeryResult:
    """Freeze the population statistics of BN layers, so that fine-tuning costs no more than without BN.

    With frozen statistics, BN is z * scale + offset in training too, with scale = gamma /
    sqrt(moving_variance + epsilon) and offset = beta - moving_mean * scale. A BN layer behind a convolution
    or dense layer z = W x + b is joined with it into one `JoinedBatchNormalization`:

        y = (W * scale) x + (b * scale + offset)

    The product is computed again in every step, and W, b, gamma and beta remain the trained weights ("tune
    mode", 2305.11624). So the function and its gradients are those of frozen BN, up to rounding, but the
    activation z is neither computed nor stored. On ResNet50, a training step needs as much memory as one of
    a network without BN.

    A BN layer is joined if it directly follows a convolution (Conv1D, Conv2D, Conv3D, also grouped,
    transposed, depthwise and separable) or a Dense layer, without an activation between the two. Any other BN
    layer, also one inside a custom layer, becomes a `FrozenBatchNormalization`. A variant of ours keeps its
    class, with `frozen_statistics=True`. Train the result like any model. Then `unfreeze` restores the
    original layers with the trained weights, for `fold`, `export`, or training with batch statistics.

    Note: `bn.trainable = False` also freezes the statistics, but it freezes gamma and beta as well. A layer
    with this setting keeps it here.

    Compared with PyTorch: `eval()` freezes the statistics as well, until the next `train()` of a parent
    module.

    Args:
        model: A Functional or Sequential model, possibly with such models nested in it. It is not changed.
        layers: The BN layers to freeze: a pattern of names or paths (`"block1_*"`), a class, a predicate on
            the layer, or several of these. If None, all are frozen.

    Returns:
        The new model, compiled like the old one, and a report with a row for each BN layer. The action is
        `joined`, `frozen` or `left alone`, with the reason. `report.difference` is the largest change of an
        output on two examples of noise. It is None if the model does not take floating-point inputs.

    Raises:
        KerasBNError: If the model is subclassed, is not built, has NaN or infinity in its weights or has no
            BN layer; or if `layers` matches none.

    >>> from keras.layers import BatchNormalization, Dense, ReLU
    >>> stack = [keras.Input((4,)), Dense(8, name="dense"), BatchNormalization(name="bn"), ReLU()]
    >>> result = freeze(keras.Sequential(stack))
    >>> result.report.rows[0]
    Row(layer='bn', kind='BatchNormalization', action='joined', reason='with dense', difference=None)
    >>> [layer.name for layer in unfreeze(result.model).model.layers[:2]]
    ['dense', 'bn']
    """
    found = normalization_calls(model)
    check_weights(model)
    freezing = _Freezing(model, select(found, layers))
    result = rewrite(model, freezing.edit)
    freezing.finish(result, found)
    rows = tuple(freezing.row(call) for call in found)
    report = Report("freeze", rows, change_on_noise(model, result), losses(model, result))
    return SurgeryResult(result, report)


def unfreeze(model: keras.Model) -> SurgeryResult:
    """Undo `freeze`: restore the original layers, with the present weights of the frozen ones.

    `freeze` followed by `unfreeze` restores the model exactly. After training in between, the result computes
    the same function at inference as the frozen model, up to rounding. The statistics are those before
    `freeze`.

    Note: A variant of ours, such as `GhostBatchNormalization`, is unfrozen even if it was created with
    `frozen_statistics=True`. A plain `BatchNormalization` created so stays frozen.

    Args:
        model: A model that `freeze` made, trained or not, also after saving and loading. It is not changed.

    Returns:
        The new model, compiled like the old one, and a report with a row for each frozen layer.
        `report.difference` is as for `freeze`.

    Raises:
        KerasBNError: If nothing in the model is frozen, or if it is subclassed or not built.

    >>> from keras.layers import BatchNormalization
    >>> model = keras.Sequential([keras.Input((4,)), BatchNormalization(name="bn")])
    >>> type(unfreeze(freeze(model).model).model.get_layer("bn")) is BatchNormalization
    True
    """
    thawing = _Thawing()
    result = rewrite(model, thawing.edit)
    if not thawing.rows:
        raise KerasBNError(
            f"Model {model.name!r} has no layer with frozen statistics; pass one that keras_bn.freeze made."
        )
    thawing.finish(result)
    difference = change_on_noise(model, result)
    return SurgeryResult(
        result, Report("unfreeze", tuple(thawing.rows.values()), difference, losses(model, result))
    )


def unfrozen(model: keras.Model) -> keras.Model:
    """The model itself, or the result of `unfreeze` if `freeze` joined layers in it."""
    layers = flatten_layers(model) if isinstance(model, keras.Model) else []
    joined = any(isinstance(layer, JoinedBatchNormalization) for layer in layers)
    return unfreeze(model).model if joined else model


class _Freezing:
    """The edits of one freeze."""

    def __init__(self, model: keras.Model, chosen: set[str]) -> None:
        calls = list(walk(model))
        in_training = set(in_training_mode(model))
        self._in_training = {id(call.layer) for call in calls if call.path in in_training}
        self._chosen = chosen
        joinable = {call.path for call in calls if call.path in chosen} - in_training
        self._partners, self._obstacles = join(calls, joinable)
        self._absorbed = {call.producers[0].path for call in calls if id(call.layer) in self._partners}
        self._joined: dict[int, tuple[Any, JoinedBatchNormalization]] = {}
        self._frozen: dict[int, tuple[Any, Any]] = {}

    def edit(self, call: Call, copy: Copies) -> list[Any] | None:
        """The layers to call instead, for `rewrite`."""
        layer, self._copies = call.layer, copy
        if call.path in self._absorbed:
            return []
        if id(layer) in self._partners:
            return [self._join(layer, copy)]
        if id(layer) in self._frozen:
            return [self._frozen[id(layer)][1]]
        if isinstance(layer, keras.layers.Wrapper):
            inner = layer.layer
            refused = self._refusal(inner, f"{call.path}/{inner.name}")
            return None if refused else [self._rewrapped(layer, inner, copy)]
        if self._refusal(layer, call.path):
            return None
        self._frozen[id(layer)] = layer, _frozen(layer, copy)
        return [self._frozen[id(layer)][1]]

    def finish(self, result: keras.Model, found: list[Call]) -> None:
        """Once the model is built: weights, `trainable` flags, and BN that layers make in their own code."""
        for old, new in self._frozen.values():
            if isinstance(new, FrozenBatchNormalization):
                new.set_weights(weights_for(new, old))
        inside = [call for call in found if self._is_inside(call)]
        pairs = [self._frozen_inside(call) for call in inside]
        with exchanged_in_place(result, [(old, new) for old, new in pairs if old is not new]):
            self._frozen.update((id(call.layer), pair) for call, pair in zip(inside, pairs, strict=True))
        for old, new in self._joined.values():
            partner = self._partners[id(old)]
            new.trainable = partner.trainable or old.trainable
            new.layer.trainable, new.normalization.trainable = partner.trainable, old.trainable

    def row(self, call: Call) -> Row:
        """The row of one BN layer."""
        layer, kind = call.layer, type(call.layer).__name__
        if id(layer) in self._joined:
            return Row(call.path, kind, "joined", f"with {self._partners[id(layer)].name}")
        if id(layer) in self._frozen:
            holder = call.node.operation
            obstacle = self._obstacles.get(id(layer), f"it is inside {holder.name}")
            if holder is not layer and not isinstance(holder, keras.layers.Wrapper):
                obstacle += ", which creates it again when the model is loaded: freeze it again then"
            return Row(call.path, kind, "frozen", f"not joined: {obstacle}")
        return Row(call.path, kind, "left alone", self._refusal(layer, call.path) or _joined_already(call))

    def _refusal(self, layer: Any, path: str) -> str:
        """Why a layer is not frozen; empty if it is to be."""
        if path not in self._chosen:
            return "not chosen"
        if id(layer) in self._in_training:
            return "is called with training=True, so model(x) normalizes by the batch"
        if getattr(layer, "frozen_statistics", False):
            return "its statistics are frozen already"
        if not isinstance(layer, BatchNormalization) and not is_keras(layer):
            return f"{type(layer).__name__} is a subclass of Keras's layer and may compute something else"
        return ""

    def _is_inside(self, call: Call) -> bool:
        """Whether a layer is to be frozen where the copy of the layer around it holds it."""
        outer = call.node.operation
        met = (
            call.layer is outer
            or isinstance(outer, JoinedBatchNormalization)
            or id(call.layer) in self._frozen
        )
        return not met and not self._refusal(call.layer, call.path)

    def _frozen_inside(self, call: Call) -> tuple[Any, Any]:
        """The BN layer in the copy of the layer around it, and the layer that replaces it."""
        outer = call.node.operation
        position = flatten_layers(outer).index(call.layer)
        copied = flatten_layers(self._copies(outer))[position]
        if not is_keras(copied) and type(copied) is not BatchNormalization:
            copied.frozen_statistics = True
            return copied, copied
        options = shared_options(copied) if is_keras(copied) else copied.get_config()
        original = keras.saving.serialize_keras_object(copied)
        return copied, built(FrozenBatchNormalization(original, **options), copied)

    def _join(self, layer: Any, copy: Copies) -> JoinedBatchNormalization:
        if id(layer) not in self._joined:
            made = JoinedBatchNormalization(copy(self._partners[id(layer)]), copy(layer))
            self._joined[id(layer)] = layer, made
        return self._joined[id(layer)][1]

    def _rewrapped(self, wrapper: Any, inner: Any, copy: Copies) -> Any:
        config = keras.saving.serialize_keras_object(_frozen(inner, copy))
        made = copy(wrapper, weights=weights_for(inner, inner), layer=config)
        self._frozen[id(inner)] = inner, made.layer
        return made


class _Thawing:
    """The edits of one unfreeze.

    Attributes:
        rows: The rows of the report, by the path of the layer.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self._thawed: dict[int, tuple[Any, Any]] = {}

    def edit(self, call: Call, copy: Copies) -> list[Any] | None:
        """The layers to call instead, for `rewrite`."""
        layer = call.layer
        if isinstance(layer, JoinedBatchNormalization):
            self._note(call, f"{layer.layer.name} and {layer.normalization.name} are separate again")
            return [copy(layer.layer), copy(layer.normalization)]
        if isinstance(layer, keras.layers.Wrapper) and _is_of_freeze(layer.layer):
            self._note(call, f"{layer.layer.name} inside it")
            return [copy(layer, layer=_thawed_config(layer.layer))]
        if not _is_of_freeze(layer):
            opaque = isinstance(layer, keras.Layer) and not is_graph(layer)
            for inner in flatten_layers(layer, include_self=False) if opaque else []:
                if getattr(inner, "frozen_statistics", False):
                    self._note(call, f"{inner.name} inside it is as the layer makes it")
            return None
        self._note(call, "")
        if not isinstance(layer, FrozenBatchNormalization):
            return [copy(layer, frozen_statistics=False)]
        if id(layer) not in self._thawed:
            original = layer.original_layer()
            original.trainable = layer.trainable
            self._thawed[id(layer)] = layer, original
        return [self._thawed[id(layer)][1]]

    def finish(self, result: keras.Model) -> None:
        """Once the model is built: the weights, and what is frozen in graphs inside of layers."""
        left = [layer for _, layer in layers_in(result) if isinstance(layer, FrozenBatchNormalization)]
        inside = [(layer, built(layer.original_layer(), layer)) for layer in left]
        for frozen, original in [*self._thawed.values(), *inside]:
            original.set_weights(weights_for(original, frozen))
            if getattr(original, "renorm", False):  # Keras's layer has averages of its own for training
                deviation = keras.ops.sqrt(original.moving_variance + original.epsilon)
                original.renorm_mean.assign(original.moving_mean)
                original.renorm_stddev.assign(deviation)
                original.moving_stddev.assign(deviation)
        with exchanged_in_place(result, inside):
            pass
        for _, layer in layers_in(result):
            if _is_of_freeze(layer):  # a variant of ours in a custom layer
                layer.frozen_statistics = False

    def _note(self, call: Call, reason: str) -> None:
        self.rows.setdefault(call.path, Row(call.path, type(call.layer).__name__, "unfrozen", reason))


def _frozen(layer: Any, copy: Copies) -> Any:
    """A BN layer with the statistics frozen, which `unfreeze` recognizes."""
    if is_keras(layer):
        options = shared_options(layer)
    elif type(layer) is BatchNormalization:
        options = layer.get_config()
    else:
        return copy(layer, frozen_statistics=True)
    return FrozenBatchNormalization(keras.saving.serialize_keras_object(layer), **options)


def _is_of_freeze(layer: Any) -> bool:
    """Whether `_frozen` made it. Of a variant that was frozen before, this cannot be told."""
    frozen = isinstance(layer, BatchNormalization) and layer.frozen_statistics
    return frozen and type(layer) is not BatchNormalization


def _thawed_config(layer: Any) -> dict[str, Any]:
    if isinstance(layer, FrozenBatchNormalization):
        return keras.saving.serialize_keras_object(layer.original_layer())
    serialized = keras.saving.serialize_keras_object(layer)
    serialized["config"]["frozen_statistics"] = False
    return serialized


def _joined_already(call: Call) -> str:
    return f"is joined with {call.node.operation.layer.name} already"
