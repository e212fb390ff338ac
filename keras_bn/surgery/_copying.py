"""Copies of the layers of a graph that is rewritten, and of what its model was compiled with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_bn._keras import Functional, compile_arguments, flatten_layers, without_calls
from keras_bn.errors import KerasBNError
from keras_bn.surgery._cloning import Clone


class Copies:
    """The copy of every layer of a model: its clone, or made anew of its configuration where that changes.

    Args:
        model: the donor.
        owned: If True, the layers of the donor are used instead of copies, because nothing else uses it.
    """

    def __init__(self, model: keras.Model, owned: bool = False) -> None:
        self._clone = None if owned else Clone(model)
        self._pairs: dict[int, tuple[Any, Any]] = {}
        self._remade: list[tuple[Any, Any, Iterable[ArrayLike] | None]] = []
        self._models: list[tuple[Any, Any]] = []
        self._new: list[tuple[Any, bool]] = []

    def __contains__(self, layer: Any) -> bool:
        return id(layer) in self._pairs

    def __call__(self, layer: Any, /, weights: Iterable[ArrayLike] | None = None, **changes: Any) -> Any:
        """The copy of `layer`; `weights` and `changes` are heeded by the call that makes it."""
        if layer not in self:
            clone = self.clone_of(layer)
            if changes or weights is not None:
                copy = _recreate(clone, changes)
                self._remade.append((clone, copy, weights))
            else:
                copy = without_calls(clone)
            self._pairs[id(layer)] = layer, copy
        return self._pairs[id(layer)][1]

    def clone_of(self, layer: Any) -> Any:
        """The layer as it was copied, whatever its configuration becomes."""
        return layer if self._clone is None else self._clone.of(layer)

    def register(self, model: Any, rebuilt: Any) -> None:
        """Take a nested model that was rebuilt from copies of its layers as its copy."""
        self._pairs[id(model)] = model, rebuilt
        self._models.append((model, rebuilt))

    def note(self, layers: Iterable[Any]) -> None:
        """Remember the `trainable` flags of layers that are no copies."""
        copies = {id(copy) for _, copy in self._pairs.values()}
        for layer in layers:
            if id(layer) not in copies and isinstance(layer, keras.Layer):
                self._new += [(each, each.trainable) for each in flatten_layers(layer)]

    def transfer_state(self) -> None:
        """Give the copies that were made anew, now built, the weights and flags of the originals."""
        for layer, copy, weights in self._remade:
            if weights is not None:
                copy.set_weights([np.asarray(array) for array in weights])
            else:
                _transfer_variables(layer, copy)
            copy.trainable = layer.trainable

    def transfer_trainable(self, model: keras.Model, result: keras.Model) -> None:
        """Set the `trainable` flags: of a copy as in the original, of a new layer as when it was noted."""
        flags = [(layer, layer.trainable) for layer in flatten_layers(result, include_self=False)]
        rebuilt = {id(copy): layer.trainable for layer, copy in self._models}
        result.trainable = model.trainable
        for layer, trainable in flags:  # outside in: setting one sets those inside
            layer.trainable = rebuilt.get(id(layer), trainable)
        for layer, trainable in self._new:
            layer.trainable = trainable


def called_alike(called: Any, layer: Any, name: str | None = None) -> Any:
    """A layer as it is called in the place of another: in a TimeDistributed where that is one.

    Args:
        called: the layer that was called before.
        layer: what is called instead, on every step of a TimeDistributed.
        name: that of the new TimeDistributed; None for the name of the old one.
    """
    if type(called) is not keras.layers.TimeDistributed:
        return layer
    flag = layer.trainable
    wrapper = keras.layers.TimeDistributed(layer, name=name or called.name, dtype=called.dtype_policy)
    wrapper.trainable = called.trainable
    layer.trainable = flag  # which that of the wrapper has changed
    return wrapper


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


def _detached(value: Any) -> Any:
    """A variable's value in an array of its own.

    JAX would let two variables share one, and the first model that trains then gives it up for both.
    """
    return ops.copy(value) if isinstance(value, keras.Variable) else value
