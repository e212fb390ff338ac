"""What the certificate is checked with: eager hooks and NumPy in float64. It shares no code with keras_bn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Array = NDArray[Any]
Hook = Callable[[Any, Array, Array], None]


def normalizations(model: keras.Model) -> list[Any]:
    """Every BN layer of Keras or of keras_bn in a model, once, wherever the model holds it."""
    return [layer for layer in all_layers(model) if _is_bn(layer)]


def all_layers(model: keras.Model) -> list[Any]:
    """Every layer that Keras knows of in a model, once."""
    return list({id(layer): layer for layer in model._flatten_layers(include_self=False)}.values())


def _is_bn(layer: Any) -> bool:
    names = {cls.__name__ for cls in type(layer).__mro__}
    return bool(names & {"BatchNormalization", "BatchNormalizationBase"}) and hasattr(layer, "moving_mean")


def digest(model: keras.Model) -> str:
    """A hash of all variables of a model: two are equal if and only if no bit moved."""
    result = hashlib.sha256()
    for variable in model.variables:
        value = value_of(variable)
        result.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    return result.hexdigest()


def value_of(variable: Any) -> Array:
    """The value of a variable or tensor; bfloat16 as float32, which holds it exactly."""
    if keras.backend.standardize_dtype(variable.dtype) == "bfloat16":
        variable = keras.ops.cast(variable, "float32")
    return np.asarray(keras.ops.convert_to_numpy(variable))


def run(model: keras.Model, inputs: Any, batch_size: int, training: bool = False) -> list[Array]:
    """The outputs, computed eagerly batch by batch, in float64; states are reset before and after."""
    _reset(model)
    preprocess = getattr(model, "preprocessor", None)
    if preprocess is not None:
        inputs = keras.tree.map_structure(value_of, preprocess(inputs))
    count = len(keras.tree.flatten(inputs)[0])
    batches = []
    for start in range(0, count, batch_size):
        cut = slice(start, start + batch_size)
        batch = keras.tree.map_structure(lambda array, cut=cut: tf.convert_to_tensor(array[cut]), inputs)
        batches.append([value_of(each) for each in keras.tree.flatten(model(batch, training=training))])
    _reset(model)
    return [np.concatenate(parts).astype("float64") for parts in zip(*batches, strict=True)]


def _reset(model: keras.Model) -> None:
    for layer in all_layers(model):
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
            layer.reset_state()


def trained(model: keras.Model, inputs: Any, batch_size: int) -> int:
    """How many BN layers move their statistics in training."""
    layers = normalizations(model)
    before = [value_of(layer.moving_mean) for layer in layers]
    run(model, inputs, batch_size, training=True)
    after = [value_of(layer.moving_mean) for layer in layers]
    return sum(not np.array_equal(old, new) for old, new in zip(before, after, strict=True))


def moments(model: keras.Model, inputs: Any, batch_size: int) -> dict[int, tuple[int, Array, Array]]:
    """Of each BN layer that is called: values per channel, their mean, and their biased variance.

    A layer is found by its `id`; all calls of a shared one count.
    """
    seen: dict[int, list[Array]] = {}

    def note(layer: Any, x: Array, mask: Array) -> None:
        x = np.moveaxis(x.astype("float64"), layer.axis, -1)
        seen.setdefault(id(layer), []).append(x[np.broadcast_to(mask, x.shape[:-1])])

    with hooked(model, note):
        run(model, inputs, batch_size)
    values = {key: np.concatenate(parts) for key, parts in seen.items()}
    return {key: (len(x), x.mean(0), x.var(0)) for key, x in values.items()}


def prepare(model: keras.Model, inputs: Any, batch_size: int) -> keras.Model:
    """Give each BN layer parameters that no two channels share, and statistics near but not at its inputs'.

    The network then neither explodes nor dies, at any depth.
    """
    rng = np.random.default_rng(0)
    done: set[int] = set()

    def assign(layer: Any, x: Array, mask: Array) -> None:
        if id(layer) in done:
            return
        done.add(id(layer))
        x = np.moveaxis(x.astype("float64"), layer.axis, -1).reshape(-1, x.shape[layer.axis])
        # A channel that hardly varies would be amplified, and rounding with it.
        deviation = np.sqrt(np.maximum(x.var(0), 0.1 * x.var(0).mean()) + layer.epsilon)
        layer.moving_mean.assign(x.mean(0) + rng.uniform(-0.2, 0.2, deviation.shape) * deviation)
        layer.moving_variance.assign(deviation**2 * rng.uniform(0.7, 1.4, deviation.shape))

    for layer in normalizations(model):
        for weight, low, high in ((layer.gamma, 0.7, 1.3), (layer.beta, -0.3, 0.3)):
            if weight is not None:
                weight.assign(rng.uniform(low, high, weight.shape))
    with hooked(model, assign):
        run(model, inputs, batch_size)
    return model


@contextmanager
def hooked(model: keras.Model, hook: Hook) -> Iterator[None]:
    """Call `hook(layer, inputs, mask)` before every eager call of a BN layer; a missing mask is True."""
    layers, vectorized = normalizations(model), tf.vectorized_map
    for layer in layers:
        vars(layer)["call"] = _calling(layer, layer.call, hook)
    tf.vectorized_map = _one_by_one  # TimeDistributed traces its layer in there, where nothing has a value
    try:
        yield
    finally:
        tf.vectorized_map = vectorized
        for layer in layers:
            del vars(layer)["call"]


def _calling(layer: Any, call: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
    def hooked_call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        hook(layer, value_of(inputs), np.array(True) if mask is None else value_of(mask))
        return call(inputs, training=training, mask=mask)

    return hooked_call


def _one_by_one(function: Callable[[Any], Any], elements: Any, **options: Any) -> Any:
    results = [function(element) for element in tf.unstack(elements)]
    return tf.nest.map_structure(lambda *parts: tf.stack(parts), *results)


def distance(actual: list[Array], expected: list[Array]) -> float:
    """The largest difference of two lists of outputs, as a fraction of each output's largest value."""
    if [each.shape for each in actual] != [each.shape for each in expected]:
        return float("inf")
    found = [
        np.max(np.abs(a - e), initial=0) / max(np.max(np.abs(e), initial=0), 1e-30)
        for a, e in zip(actual, expected, strict=True)
    ]
    return float(np.nan_to_num(max(found, default=0.0), nan=np.inf))


def misfit(
    mean: Array, variance: Array, expected_mean: Array, expected_variance: Array, epsilon: float
) -> float:
    """How far statistics are from the expected ones, in deviations and as a fraction of the variance."""
    scale = expected_variance + epsilon
    off = max(
        np.max(np.abs(mean - expected_mean) / np.sqrt(scale), initial=0),
        np.max(np.abs(variance - expected_variance) / scale, initial=0),
    )
    return float(np.nan_to_num(off, nan=np.inf))
