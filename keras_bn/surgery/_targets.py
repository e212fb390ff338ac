"""The layer by which `convert` replaces a BN layer, for each form of its argument `to`."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import keras

from keras_bn._keras import arguments_of_calls
from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.surgery._conversions import is_keras, ours, shared_options, weights_for
from keras_bn.surgery.normalizations import is_batch_normalization

GROUPS = 32  # as in Wu and He (1803.08494), where the number of channels allows it
WITHIN_THE_EXAMPLE = (keras.layers.GroupNormalization, keras.layers.LayerNormalization)

# Makes a new layer, which need not be built, of a BN layer.
Maker = Callable[[Any], keras.Layer]

# The options that determine the outputs. They are always the donor's, not those of a template.
_DONORS = {"name", "trainable", "dtype", "axis", "epsilon", "center", "scale"}


class Refused(KerasBNError):
    """There is no such layer for this one; the message is the reason, for the report."""


def maker(to: Any, unbiased_variance: bool) -> Maker:
    """The function that makes new layers.

    Args:
        to: `"keras"`, `"frozen"`, `"group"`, a class, an instance, a `functools.partial` of a class, or a
            function from a layer to a layer.
        unbiased_variance: what our layers average, where neither the donor nor `to` says so.

    Raises:
        KerasBNError: if `to` is none of these. The function raises `Refused` for a layer it has none for.
    """
    if isinstance(to, str) and to in ("keras", "frozen", "group"):
        return {"keras": _keras, "frozen": _frozen, "group": _group}[to]
    if isinstance(to, keras.Layer):
        kind, options = type(to), _options(to)
    elif isinstance(to, functools.partial) and isinstance(to.func, type):
        kind, options = to.func, dict(to.keywords)
    elif isinstance(to, type):
        kind, options = to, {}
    elif callable(to):
        return lambda layer: _by_function(to, layer)
    else:
        kind, options = object, {}
    if not issubclass(kind, keras.Layer):
        raise KerasBNError(
            f"to={to!r}: it must be 'keras', 'frozen', 'group', a class of layers such as "
            "keras_bn.BatchNormalization, an instance or a functools.partial of one, or a function from a "
            "layer to a layer."
        )
    _check_complete(kind, options)
    if issubclass(kind, BatchNormalization):
        return lambda layer: _ours(layer, kind, options, unbiased_variance)
    if kind is keras.layers.BatchNormalization:
        return _keras
    return lambda layer: _other(layer, kind, options)


def built(new: Any, layer: Any) -> Any:
    """`new` itself with its weights: if it is not built yet, those of `layer` that go by the same name.

    Raises:
        Refused: if it cannot be built on the inputs of `layer`.
    """
    if layer.built and not new.built:
        shape = (layer.get_build_config() or {}).get("input_shape")
        if shape is None:
            shape = [None] * layer.input_spec.ndim
            shape[layer.axis] = layer.moving_mean.shape[-1]
        with ExitStack() as scopes:
            for scope in layer.moving_mean.path.split("/")[:-2]:
                scopes.enter_context(keras.name_scope(scope))
            try:
                new.build(tuple(shape))
            except ValueError as error:
                raise Refused(f"{type(new).__name__} does not fit: {error}") from error
        if is_batch_normalization(new) or isinstance(new, WITHIN_THE_EXAMPLE):
            new.set_weights(weights_for(new, layer))
    return new


@contextmanager
def fitting_arguments(layers: Iterable[Any]) -> Iterator[None]:
    """Leave out of the calls of new layers what these do not take, such as `training` and `mask`.

    If the block is left by an error, the calls are again what they were.
    """
    undo: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for layer in layers:
            accepted = inspect.signature(layer.call).parameters
            for arguments in arguments_of_calls(layer):
                undo.append((arguments, dict(arguments)))
                for name in set(arguments) - set(accepted):
                    del arguments[name]
        yield
    except BaseException:
        for arguments, before in undo:
            arguments.update(before)
        raise


def _ours(layer: Any, kind: Any, options: dict[str, Any], unbiased_variance: bool) -> Any:
    try:
        if isinstance(layer, BatchNormalization):
            # The base class's own method, which leaves out what a variant adds.
            config = BatchNormalization.get_config(layer) | options
            if type(layer) is kind and layer.get_config() == layer.get_config() | options:
                raise Refused("is keras_bn's already")
        else:
            _check_plain(layer)
            if kind is BatchNormalization and not options:
                return ours(layer, unbiased_variance)
            config = shared_options(layer) | {"unbiased_variance": unbiased_variance} | options
        return kind(**config)
    except Refused:
        raise
    except KerasBNError as error:
        raise Refused(str(error)) from error


def _frozen(layer: Any) -> Any:
    """Ours with frozen statistics; a variant of ours stays one."""
    if not isinstance(layer, BatchNormalization):
        return _ours(layer, BatchNormalization, {"frozen_statistics": True}, False)
    if layer.frozen_statistics:
        raise Refused("its statistics are frozen already")
    return type(layer).from_config(layer.get_config() | {"frozen_statistics": True})


def _keras(layer: Any) -> Any:
    """Keras's layer, if it computes and trains as `layer` does."""
    if isinstance(layer, keras.layers.BatchNormalization):
        raise Refused("is Keras's already")
    lost = {
        f"{type(layer).__name__} trains otherwise": type(layer) is not BatchNormalization,
        "Keras's layer has no cumulative average; set a momentum": layer.momentum is None,
        "Keras's layer has no frozen_statistics; set it to False": layer.frozen_statistics,
        "Keras's layer averages the biased variance; set unbiased_variance to False to accept that": (
            layer.unbiased_variance
        ),
    }
    if reasons := [reason for reason, holds in lost.items() if holds]:
        raise Refused("; ".join(reasons))
    config = layer.get_config()
    del config["unbiased_variance"], config["frozen_statistics"]
    return keras.layers.BatchNormalization(**config)


def _group(layer: Any) -> Any:
    """Group normalization, or layer normalization of vectors, of which a group may have one value."""
    kind = WITHIN_THE_EXAMPLE[layer.built and layer.input_spec.ndim == 2]
    return _other(layer, kind, {})


def _other(layer: Any, kind: Any, options: dict[str, Any]) -> Any:
    """A layer of another kind, with the name, policy and flag of `layer`, and what else they share."""
    if not isinstance(layer, BatchNormalization):
        _check_plain(layer)
    config = layer.get_config()
    given = {name: config[name] for name in ("name", "trainable", "dtype")}
    if issubclass(kind, keras.layers.LayerNormalization) and _breaks_layer_normalization(layer):
        raise Refused("on PyTorch, Keras's LayerNormalization takes channels on the last axis only")
    if issubclass(kind, WITHIN_THE_EXAMPLE):
        # Both gamma and beta: without them there is nothing that could take up the moments.
        given |= {"axis": layer.axis, "epsilon": layer.epsilon}
        given |= {
            f"{weight}_{what}": config[f"{weight}_{what}"]
            for weight, there in (("gamma", layer.scale), ("beta", layer.center))
            for what in ("regularizer", "constraint")
            if there
        }
    if issubclass(kind, keras.layers.GroupNormalization):
        given["groups"] = math.gcd(GROUPS, layer.moving_mean.shape[-1]) if layer.built else GROUPS
    try:
        return kind(**given | options)
    except (TypeError, ValueError) as error:
        raise KerasBNError(f"{kind.__name__} cannot be made with {given | options}: {error}") from error


def _breaks_layer_normalization(layer: Any) -> bool:
    """Whether Keras 3.15's layer normalization fails on the channel axis, as it does on PyTorch."""
    if keras.backend.backend() != "torch" or not layer.built:
        return False
    return layer.axis not in (-1, layer.input_spec.ndim - 1)


def _by_function(function: Callable[[Any], Any], layer: Any) -> Any:
    new = function(layer)
    if new is None or new is layer:
        raise Refused("the function leaves it as it is")
    if not isinstance(new, keras.Layer):
        raise KerasBNError(
            f"to={function!r} returned a {type(new).__name__} for {layer.name!r}; it must return a Keras "
            "layer, or None to leave the layer alone."
        )
    return new


def _options(template: keras.Layer) -> dict[str, Any]:
    """The arguments of an instance that are its own choice: not the donor's, and no default of BN."""
    defaults = BatchNormalization().get_config() if isinstance(template, BatchNormalization) else {}
    config = template.get_config()
    own = {name: value for name, value in config.items() if name not in _DONORS}
    return {name: value for name, value in own.items() if name not in defaults or value != defaults[name]}


def _check_complete(kind: Any, options: dict[str, Any]) -> None:
    arguments = list(inspect.signature(kind.__init__).parameters.values())[1:]
    plain = [a for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)]
    missing = [a.name for a in plain if a.default is a.empty and a.name not in options]
    if missing:
        given = ", ".join(f"{name}=..." for name in missing)
        raise KerasBNError(
            f"{kind.__name__} needs {', '.join(missing)}: give an instance, to={kind.__name__}({given})."
        )


def _check_plain(layer: Any) -> None:
    if not is_keras(layer):
        raise Refused(f"{type(layer).__name__} is a subclass of Keras's layer and may compute something else")
