"""Copies of layers that share nothing with the originals: configuration, weights, seeds, flags."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_bn._keras import Functional, compile_arguments, flatten_layers
from keras_bn.errors import KerasBNError
from keras_bn.surgery._state import states_of


class Copies:
    """The copy of every layer, made when first asked for."""

    def __init__(self) -> None:
        self._pairs: dict[int, tuple[Any, Any]] = {}
        self._weights: dict[int, Iterable[ArrayLike]] = {}
        self._models: set[int] = set()
        self._new: list[tuple[Any, bool]] = []

    def __contains__(self, layer: Any) -> bool:
        return id(layer) in self._pairs

    def __call__(self, layer: Any, /, weights: Iterable[ArrayLike] | None = None, **changes: Any) -> Any:
        """The copy of `layer`; `weights` and `changes` are heeded by the call that makes it."""
        if layer not in self:
            self._pairs[id(layer)] = layer, _recreate(layer, changes)
            if weights is not None:
                self._weights[id(layer)] = weights
        return self._pairs[id(layer)][1]

    def register(self, model: keras.Model, rebuilt: keras.Model) -> None:
        """Take a nested model that was rebuilt from copies of its layers as its copy."""
        self._pairs[id(model)] = model, rebuilt
        self._models.add(id(model))

    def note(self, layers: Iterable[Any]) -> None:
        """Remember the `trainable` flags of layers that are no copies."""
        copies = {id(copy) for _, copy in self._pairs.values()}
        self._new += [(layer, layer.trainable) for layer in layers if id(layer) not in copies]

    def transfer_state(self) -> None:
        """Give the copies, now built, the variables and assets of the originals."""
        for key, (layer, copy) in self._pairs.items():
            if key in self._models or not isinstance(layer, keras.Layer):
                continue
            if key in self._weights:
                copy.set_weights([np.asarray(array) for array in self._weights[key]])
            else:
                _transfer_variables(layer, copy)
            _transfer_assets(layer, copy)

    def transfer_trainable(self, model: keras.Model, result: keras.Model) -> None:
        """Set the `trainable` flags: of a copy as in the original, of a new layer as when it was noted."""
        result.trainable = model.trainable
        for layer in flatten_layers(model, include_self=False):  # outside in: setting one sets those inside
            key = id(layer)
            if key in self._pairs:
                copy = self._pairs[key][1]
                pairs = [(layer, copy)] if key in self._models else _sublayers(layer, copy)
                for source, target in pairs:
                    target.trainable = source.trainable
        for layer, trainable in self._new:
            layer.trainable = trainable


def constructor(model: keras.Model) -> Callable[..., keras.Model]:
    """The class of a Functional or Sequential model if it is built like one, else that base class."""
    kind = type(model)
    if isinstance(model, keras.Sequential):
        return kind if kind.__init__ is keras.Sequential.__init__ else keras.Sequential
    accepted = list(inspect.signature(kind.__init__).parameters)[1:]
    like_functional = accepted[:2] == ["inputs", "outputs"] or accepted == ["args", "kwargs"]
    return kind if like_functional and kind.get_config is Functional.get_config else keras.Model


def compile_alike(model: keras.Model, result: keras.Model) -> None:
    """Compile `result` as `model` is; left uncompiled where the configuration cannot be deserialized."""
    if not model.compiled:
        return
    try:
        with keras.saving.custom_object_scope(_named(compile_arguments(model).values())):
            result.compile_from_config(model.get_compile_config())
    except (TypeError, ValueError, KeyError, AttributeError):
        result.compiled = False


def parameters(function: Callable[..., Any]) -> set[str]:
    """The names of the arguments a function takes."""
    return set(inspect.signature(function).parameters)


def _recreate(layer: Any, changes: dict[str, Any]) -> Any:
    kind = type(layer)
    try:
        config = layer.get_config()
        # A function need not be registered, or have a name, to be passed on as it is.
        functions = {key: value for key in config if inspect.isfunction(value := getattr(layer, key, None))}
        if isinstance(layer, keras.layers.Lambda):
            return kind(**config | functions | {"arguments": layer.arguments} | changes)
        return kind.from_config(config | functions | changes)
    except Exception as error:
        raise KerasBNError(
            f"Layer {layer.name!r} ({kind.__name__}) cannot be recreated from its configuration: {error} "
            "Give the class a get_config that holds its constructor's arguments."
        ) from error


def _named(values: Iterable[Any]) -> dict[str, Any]:
    values = [leaf for value in values for leaf in keras.tree.flatten(value)]
    functions = [value for value in values if inspect.isfunction(value)]
    return {function.__name__: function for function in functions}


def _transfer_variables(layer: keras.Layer, copy: keras.Layer) -> None:
    old, new = layer.variables, copy.variables
    if [tuple(v.shape) for v in old] != [tuple(v.shape) for v in new]:
        raise KerasBNError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has other variables when recreated from its "
            "configuration; its get_config must hold every argument that decides what it builds."
        )
    for source, target in zip(old, new, strict=True):
        target.assign(_detached(source))
    for original, part in _sublayers(layer, copy):
        for source, target in zip(states_of(original), states_of(part), strict=True):
            target.assign(_detached(source))
        if type(part).load_own_variables is not keras.Layer.load_own_variables:
            store: dict[str, Any] = {}  # it derives more from its variables, as Normalization does
            original.save_own_variables(store)
            part.load_own_variables({key: _detached(value) for key, value in store.items()})


def _detached(value: Any) -> Any:
    """A variable's value in an array of its own.

    JAX would let two variables share one, and the first model that trains then gives it up for both.
    """
    return ops.copy(value) if isinstance(value, keras.Variable) else value


def _sublayers(layer: keras.Layer, copy: keras.Layer) -> list[tuple[keras.Layer, keras.Layer]]:
    """A layer and those inside it with their counterparts; itself alone if the copy was made differently."""
    old, new = flatten_layers(layer), flatten_layers(copy)
    return list(zip(old, new, strict=True)) if len(old) == len(new) else [(layer, copy)]


def _transfer_assets(layer: keras.Layer, copy: keras.Layer) -> None:
    """Vocabularies and other state that is not in variables."""
    for source, target in _sublayers(layer, copy):
        if hasattr(source, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                source.save_assets(folder)
                target.load_assets(folder)
