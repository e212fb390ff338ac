"""Which BN layers are joined with the layer before them, and the model in which they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from keras_bn._keras import direct_layers, without_calls
from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.frozen import FrozenBatchNormalization
from keras_bn.layers.joined import AbsorbedBatchNormalization, JoinedBatchNormalization
from keras_bn.surgery._cloning import Clone, exchanged_in_place, layers_in
from keras_bn.surgery._conversions import is_keras, shared_options
from keras_bn.surgery._copying import Copies, compile_alike
from keras_bn.surgery._inlining import Inlined
from keras_bn.surgery._joinable import join
from keras_bn.surgery._noise import called_in_training, change_on_noise, fails_on_noise
from keras_bn.surgery._targets import built
from keras_bn.surgery.graph import Call, calls, flatten, graph_in, keeps_its_class, rewrite, walk
from keras_bn.surgery.normalizations import Normalization, calls_in_training, is_batch_normalization
from keras_bn.surgery.report import Row


class Freezing:
    """The plan of one freeze.

    Args:
        model: any built model. It is left as it is.
        found: its BN layers.
        chosen: the paths of those to freeze.
    """

    def __init__(self, model: keras.Model, found: list[Normalization], chosen: set[str]) -> None:
        self._model, self._found = model, found
        self._refused: dict[int, str] = {}
        self._obstacles: dict[int, str] = {}
        self._partners: dict[int, Any] = {}
        joined = {
            id(layer.normalization): layer.layer.name
            for _, layer in layers_in(model)
            if isinstance(layer, JoinedBatchNormalization)
        }
        for each in found:
            reason = "" if each.path in chosen else "not chosen"
            if not reason and id(each.layer) in joined:
                reason = f"is joined with {joined[id(each.layer)]} already"
            if reason := reason or _refusal(each.layer):
                self._refused[id(each.layer)] = reason
        self._look_into()
        # In a plain graph, the joined layer is one layer; elsewhere two, in the places of the two.
        self._direct: set[int] = set()
        if keeps_its_class(model):
            direct = {id(call.layer) for call in walk(model)}
            self._direct = {
                key for key, partner in self._partners.items() if key in direct and id(partner) in direct
            }

    def _look_into(self) -> None:
        """Find what each BN layer follows, in a trace of the model."""
        layers = [each.layer for each in self._found]
        try:
            view = Inlined(self._model, is_batch_normalization, trainable=True)
        except KerasBNError as error:
            reason = getattr(error, "reason", str(error))
            reason = f"the graph of {type(self._model).__name__} cannot be seen: {reason}"
            self._obstacles = {id(layer): reason for layer in layers}
            self._leave_training_alone(called_in_training(self._model, layers))
            return
        nested = calls(view.model, view.paths)
        found = list(flatten(nested))
        in_training = [call.own_layer for call in calls_in_training(nested)]
        hidden: dict[int, str] = {}
        for call in found:
            inner = call.own_layer
            if isinstance(inner, keras.Layer) and graph_in(inner) is None and not _is_joined(inner):
                why = view.closed.get(call.path, f"{type(inner).__name__} calls it in code of its own")
                reason = f"it is inside {call.path} ({type(inner).__name__}): {why}"
                hidden.update((id(layer), reason) for _, layer in layers_in(inner))
        seen = {id(call.own_layer) for call in found}
        copies = {id(view.donors[key]): key for key in seen | set(hidden) if key in view.donors}
        in_training += called_in_training(
            view.model, [layer for _, layer in layers_in(view.model) if id(layer) in hidden]
        )
        self._leave_training_alone([view.donors[id(layer)] for layer in in_training])
        for layer in layers:
            if not layer.built or id(layer) not in copies:
                self._refused.setdefault(id(layer), "is never called")
        chosen = {copies[id(layer)] for layer in layers if id(layer) not in self._refused}
        partners, obstacles = join(found, chosen, hidden)
        for key in chosen:
            donor = id(view.donors[key])
            if key in partners:
                self._partners[donor] = view.donors[id(partners[key])]
            else:
                self._obstacles[donor] = obstacles.get(key) or hidden[key]

    def _leave_training_alone(self, layers: Iterable[Any]) -> None:
        for layer in layers:
            reason = "is called with training=True, so model(x) normalizes by the batch"
            self._refused.setdefault(id(layer), reason)

    def tried(self) -> tuple[keras.Model, float | None]:
        """The frozen model, and how much an output changes on noise.

        Where the code of a custom layer does not work with the joined layers, its BN is not joined.
        """
        result = self._applied()
        inside = {key for key in self._partners if key not in self._direct}
        if inside and (not self._keeps_configurations(result) or fails_on_noise(self._model, result)):
            for key in inside:
                partner = self._partners.pop(key)
                self._obstacles[key] = (
                    "the code that calls it fails, or computes something else, if it is joined with "
                    f"{partner.name}"
                )
            result = self._applied()
        return result, change_on_noise(self._model, result)

    def _applied(self) -> keras.Model:
        if not self._direct:
            clone = Clone(self._model)
            self._exchange(clone.model, clone.of)
            return clone.model
        absorbed = {id(self._partners[key]) for key in self._direct}
        made: dict[int, tuple[Any, JoinedBatchNormalization]] = {}
        copies: list[Copies] = []

        def edit(call: Call, copy: Copies) -> list[Any] | None:
            copies.append(copy)
            layer = call.layer
            if id(layer) in absorbed:
                return []
            if id(layer) not in self._direct:
                return None
            if id(layer) not in made:
                made[id(layer)] = (
                    layer,
                    JoinedBatchNormalization(copy(self._partners[id(layer)]), copy(layer)),
                )
            return [made[id(layer)][1]]

        result = rewrite(self._model, edit)
        for layer, new in made.values():
            _set_flags(new, self._partners[id(layer)], layer)
        self._exchange(result, copies[0].clone_of)
        return result

    def apply_to(self, model: keras.Model) -> None:
        """Freeze the donor itself, which is left as it was if that is interrupted."""
        self._direct = set()
        self._exchange(model, lambda layer: layer)

    def _exchange(self, model: keras.Model, of: Callable[[Any], Any]) -> None:
        """Put the new layers in the places of the old ones; of joined ones, all but the direct ones.

        Args:
            model: the donor or a copy of it.
            of: gives the counterpart of a layer of the donor.
        """
        pairs: list[tuple[Any, Any]] = []
        flagged, absorbed = [], []
        for number, each in enumerate(self._found):
            layer = each.layer
            if id(layer) in self._refused or id(layer) in self._direct:
                continue
            copied = of(layer)
            if id(layer) in self._partners:
                partner = of(self._partners[id(layer)])
                joined = JoinedBatchNormalization(partner, copied, pair=number, name=partner.name)
                joined.build(tuple(partner.get_build_config()["input_shape"]))
                joined.built = True
                _set_flags(joined, partner, copied)
                stand_in = AbsorbedBatchNormalization(number, name=copied.name, dtype=copied.dtype_policy)
                stand_in.build(tuple(copied.get_build_config()["input_shape"]))
                pairs += [(partner, joined), (copied, stand_in)]
                absorbed += [partner, copied]
            elif is_keras(copied) or type(copied) is BatchNormalization:
                pairs.append((copied, built(_frozen(copied), copied)))
            else:
                flagged.append(copied)
        before = variables_after(model, pairs)
        with exchanged_in_place(model, pairs):
            for layer in flagged:
                layer.frozen_statistics = True
        for layer in absorbed:
            without_calls(layer)
        restart_optimizer(model, before)

    def rows(self) -> tuple[Row, ...]:
        """A row for each BN layer."""
        return tuple(
            Row(each.path, type(each.layer).__name__, *self._outcome(each.layer)) for each in self._found
        )

    def _outcome(self, layer: Any) -> tuple[str, str]:
        if id(layer) in self._refused:
            return "left alone", self._refused[id(layer)]
        if id(layer) in self._partners:
            return "joined", f"with {self._partners[id(layer)].name}"
        return "frozen", f"not joined: {self._obstacles[id(layer)]}"

    def notes(self) -> tuple[str, ...]:
        """What to mind when the result is saved."""
        kinds = ", ".join(sorted({type(holder).__name__ for holder in self._holders(self._model)}))
        if not kinds:
            return ()
        return (
            "The code of these classes creates the frozen layers, and creates them anew when the model is "
            f"loaded from a .keras file: {kinds}. Call unfreeze before saving such a file.",
        )

    def _holders(self, model: keras.Model) -> Iterator[Any]:
        """The custom layers and models that hold a frozen layer in their attributes."""
        changed = {id(each.layer) for each in self._found if id(each.layer) not in self._refused}
        for layer in (model, *(layer for _, layer in layers_in(model))):
            if (
                graph_in(layer) is None
                and not isinstance(layer, (keras.layers.Wrapper, JoinedBatchNormalization))
                and any(id(inner) in changed for inner in direct_layers(layer))
            ):
                yield layer

    def _keeps_configurations(self, result: keras.Model) -> bool:
        """Whether every custom layer that had a configuration still has one."""
        olds = [self._model, *(layer for _, layer in layers_in(self._model))]
        holders = {id(holder) for holder in self._holders(self._model)}
        names = [layer.name for layer in olds if id(layer) in holders and _has_configuration(layer)]
        news = {
            layer.name for layer in (result, *(x for _, x in layers_in(result))) if _has_configuration(layer)
        }
        return all(name in news for name in names)


def variables_after(model: keras.Model, pairs: Iterable[tuple[Any, Any]]) -> list[int]:
    """The identities of the trained variables, in order, as they are to be after an exchange."""
    new: dict[int, int] = {}
    for old, replacement in pairs:
        by_name = {variable.name: variable for variable in replacement.variables}
        new.update((id(v), id(by_name[v.name])) for v in old.variables if v.name in by_name)
    return [new.get(id(variable), id(variable)) for variable in model.trainable_variables]


def restart_optimizer(model: keras.Model, variables: list[int]) -> None:
    """Compile the model anew if its trained variables are in another order: optimizers go by that."""
    if model.compiled and [id(variable) for variable in model.trainable_variables] != variables:
        compile_alike(model, model)


def _refusal(layer: Any) -> str:
    """Why a layer cannot be frozen; empty if it can."""
    if getattr(layer, "frozen_statistics", False):
        return "its statistics are frozen already"
    if not isinstance(layer, BatchNormalization) and not is_keras(layer):
        return f"{type(layer).__name__} is a subclass of Keras's layer and may compute something else"
    return ""


def _frozen(layer: Any) -> FrozenBatchNormalization:
    options = shared_options(layer) if is_keras(layer) else layer.get_config()
    return FrozenBatchNormalization(keras.saving.serialize_keras_object(layer), **options)


def _set_flags(joined: JoinedBatchNormalization, layer: Any, normalization: Any) -> None:
    """The `trainable` flags of the two layers, which setting that of the joined one would change."""
    flags = layer.trainable, normalization.trainable
    joined.trainable = any(flags)
    joined.layer.trainable, joined.normalization.trainable = flags


def _is_joined(layer: Any) -> bool:
    return isinstance(layer, JoinedBatchNormalization)


def _has_configuration(layer: Any) -> bool:
    try:
        layer.get_config()
    except Exception:  # it is the user's code, and whether it works is what is asked
        return False
    return True
