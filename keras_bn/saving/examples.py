"""Inputs for a signature: made up from its types and shapes, or given by the user."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bn.errors import KerasBNError

Tensors = dict[str, np.ndarray]

COUNT = 4
_OPEN_SIZE = 64  # survives the five halvings of a usual convolutional network


def generated(inputs: Mapping[str, tf.TensorSpec]) -> Iterator[Tensors]:
    """Yield batches of `COUNT` examples, a second one of larger numbers for models that saturate on the
    first."""
    for name, spec in inputs.items():
        if spec.dtype == tf.string:
            raise KerasBNError(f"input {name!r} takes strings, which cannot be made up; pass examples.")
    for largest in (1.0, 255.0):
        random = np.random.default_rng(0)
        yield {name: _values(random, spec, largest) for name, spec in inputs.items()}


def _values(random: np.random.Generator, spec: tf.TensorSpec, largest: float) -> np.ndarray:
    batch, *rest = spec.shape.as_list()
    shape = (batch or COUNT, *(_OPEN_SIZE if size is None else size for size in rest))
    if spec.dtype.is_floating:
        # Examples of one distribution have nearly equal statistics, which would hide that they are mixed.
        scales = largest * np.geomspace(0.1, 1.0, shape[0]).reshape(-1, *[1] * len(rest))
        return (scales * random.uniform(-0.2, 1.0, shape)).astype(spec.dtype.as_numpy_dtype)
    top = 256 if spec.dtype == tf.uint8 else 2
    return random.integers(0, top, shape).astype(spec.dtype.as_numpy_dtype)


def given(inputs: Mapping[str, tf.TensorSpec], examples: Any) -> Tensors:
    """Match the user's `examples` to the inputs: a dict by name, a list in their order, or the only one's
    array."""
    if isinstance(examples, Mapping):
        named = dict(examples)
    else:
        values = examples if isinstance(examples, (list, tuple)) and len(inputs) > 1 else [examples]
        named = dict(zip(inputs, values, strict=False)) if len(values) == len(inputs) else {}
    if named.keys() != inputs.keys():
        got = ", ".join(named) or f"{len(values)} arrays"
        raise KerasBNError(f"examples must be given for the inputs {', '.join(inputs)}; got {got}.")
    arrays = {name: _array(name, value, inputs[name]) for name, value in named.items()}
    if len({len(array) for array in arrays.values()}) > 1:
        raise KerasBNError(f"examples differ in number: { {name: len(a) for name, a in arrays.items()} }.")
    return arrays


def _array(name: str, value: Any, spec: tf.TensorSpec) -> np.ndarray:
    dtype = object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype
    array = np.asarray(value, dtype=dtype)
    if not spec.shape.is_compatible_with(array.shape):
        raise KerasBNError(
            f"examples for input {name!r} have shape {array.shape}; the model takes {spec.shape}."
        )
    return array
