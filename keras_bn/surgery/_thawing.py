"""The original layers put back in a model that was frozen."""

from __future__ import annotations

from typing import Any

import keras

from keras_bn._keras import without_calls
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.frozen import FrozenBatchNormalization
from keras_bn.layers.joined import AbsorbedBatchNormalization, JoinedBatchNormalization
from keras_bn.surgery._cloning import Clone, exchanged_in_place, layers_in
from keras_bn.surgery._conversions import weights_for
from keras_bn.surgery._copying import Copies
from keras_bn.surgery._freezing import restart_optimizer, variables_after
from keras_bn.surgery._targets import built
from keras_bn.surgery.graph import Call, keeps_its_class, rewrite, walk
from keras_bn.surgery.report import Row


class Thawing:
    """The plan of one unfreeze.

    Attributes:
        rows: a row for each frozen layer.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        found = layers_in(model)
        self.rows = tuple(
            Row(path, type(layer).__name__, "unfrozen", _result(layer))
            for path, layer in found
            if _is_frozen(layer)
        )
        stand_ins = _stand_ins(model)
        lone = {id(each) for _, each in found if _is_joined(each) and id(each) not in stand_ins}
        self._split = (
            lone if keeps_its_class(model) and lone <= {id(call.layer) for call in walk(model)} else set()
        )

    def applied(self) -> keras.Model:
        """The model with the original layers."""

        def edit(call: Call, copy: Copies) -> list[Any] | None:
            layer = call.layer
            return [copy(layer.layer), copy(layer.normalization)] if id(layer) in self._split else None

        result = rewrite(self._model, edit) if self._split else Clone(self._model).model
        self.apply_to(result)
        return result

    def apply_to(self, model: keras.Model) -> None:
        """Put the original layers back in a model itself, which is left as it was if that is interrupted."""
        stand_ins = _stand_ins(model)
        pairs: list[tuple[Any, Any]] = []
        flagged = []
        for _, layer in layers_in(model):
            if _is_joined(layer):
                pairs += _apart(layer, stand_ins.get(id(layer)))
            elif isinstance(layer, FrozenBatchNormalization):
                pairs.append((layer, _original(layer)))
            elif _is_frozen(layer):
                flagged.append(layer)
        before = variables_after(model, pairs)
        with exchanged_in_place(model, pairs):
            for layer in flagged:
                layer.frozen_statistics = False
        for layer, _ in pairs:
            without_calls(layer)
        restart_optimizer(model, before)


def _is_joined(layer: Any) -> bool:
    return isinstance(layer, JoinedBatchNormalization)


def _is_frozen(layer: Any) -> bool:
    """Whether `freeze` made it. Of a variant of ours that was created so, this cannot be told."""
    if _is_joined(layer):
        return True
    frozen = isinstance(layer, BatchNormalization) and layer.frozen_statistics
    return frozen and type(layer) is not BatchNormalization


def _result(layer: Any) -> str:
    if _is_joined(layer):
        return f"{layer.layer.name} and {layer.normalization.name} are separate again"
    return ""


def _stand_ins(model: keras.Model) -> dict[int, AbsorbedBatchNormalization]:
    """For the `id` of a joined layer, what stands in the place of its BN layer.

    Where a frozen model is used twice in another, so is the number of a pair; the copies come in one order.
    """
    places: dict[tuple[int, str], list[AbsorbedBatchNormalization]] = {}
    layers = [layer for _, layer in layers_in(model)]
    for layer in layers:
        if isinstance(layer, AbsorbedBatchNormalization):
            places.setdefault((layer.pair, layer.name), []).append(layer)
    found = {}
    for layer in layers:
        if _is_joined(layer) and (waiting := places.get((layer.pair, layer.normalization.name))):
            found[id(layer)] = waiting.pop(0)
    return found


def _apart(joined: JoinedBatchNormalization, stand_in: Any) -> list[tuple[Any, Any]]:
    """What is put in the places of a joined layer and of its BN layer."""
    if stand_in is not None:
        return [(joined, joined.layer), (stand_in, joined.normalization)]
    both = keras.Sequential([joined.layer, joined.normalization], name=joined.name)
    return [(joined, both)]


def _original(frozen: FrozenBatchNormalization) -> Any:
    original = frozen.original_layer()
    original.trainable = frozen.trainable
    original = built(original, frozen)
    original.set_weights(weights_for(original, frozen))
    if getattr(original, "renorm", False):  # Keras's layer has averages of its own for training
        deviation = keras.ops.sqrt(original.moving_variance + original.epsilon)
        original.renorm_mean.assign(original.moving_mean)
        original.renorm_stddev.assign(deviation)
        original.moving_stddev.assign(deviation)
    return original
