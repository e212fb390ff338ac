"""Inputs for a signature, generated from its types and shapes or given by the user."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bn.errors import KerasBNError

Tensors = dict[str, np.ndarray]

COUNT = 4
_OPEN_SIZE = 64  # survives the five halvings of a usual convolutional network


def generated(inputs: Mapping[str, tf.TensorSpec], count: int | None = None) -> Iterator[Tensors]:
    """Yield batches of `count` examples, a second one of larger numbers for models that saturate on the
    first.

    None is the batch size of the inputs, or `COUNT` if that is open.
    """
    for name, spec in inputs.items():
        if spec.dtype == tf.string:
            raise KerasBNError(f"input {name!r} takes strings, which cannot be made up; pass examples.")
    count = count or batch_size(inputs) or COUNT
    for largest in (1.0, 255.0):
        random = np.random.default_rng(0)
        yield {name: _values(random, spec, count, largest) for name, spec in inputs.items()}


def batch_size(inputs: Mapping[str, tf.TensorSpec]) -> int | None:
    """The only batch size that the inputs take, or None."""
    sizes = (spec.shape[0] for spec in inputs.values() if spec.shape.rank)
    return next((size for size in sizes if size is not None), None)


def _values(random: np.random.Generator, spec: tf.TensorSpec, count: int, largest: float) -> np.ndarray:
    if spec.shape.rank == 0:
        return np.ones((), spec.dtype.as_numpy_dtype)
    rest = spec.shape.as_list()[1:] if spec.shape.rank else []
    shape = (count, *(_OPEN_SIZE if size is None else size for size in rest))
    if spec.dtype.is_floating:
        # Examples of one distribution have nearly equal statistics, which would hide that they are mixed.
        scales = largest * np.geomspace(0.1, 1.0, shape[0]).reshape(-1, *[1] * len(rest))
        return (scales * random.uniform(-0.2, 1.0, shape)).astype(spec.dtype.as_numpy_dtype)
    top = 256 if spec.dtype == tf.uint8 else 2
    return random.integers(0, top, shape).astype(spec.dtype.as_numpy_dtype)


def given(inputs: Mapping[str, tf.TensorSpec], examples: Any) -> Tensors:
    """Match `examples` to the inputs: arrays by name, arrays in their order, or the array of the only input.

    If the batch size is fixed, extra examples are left out.
    """
    if isinstance(examples, (list, tuple)) and len(inputs) == len(examples) > 1:
        examples = dict(zip(inputs, examples, strict=True))
    named = dict(examples) if isinstance(examples, Mapping) else dict.fromkeys(inputs, examples)
    if named.keys() != inputs.keys() or (len(inputs) > 1 and not isinstance(examples, Mapping)):
        got = ", ".join(examples) if isinstance(examples, Mapping) else "one array"
        raise KerasBNError(f"examples must be given for the inputs {', '.join(inputs)}; got {got}.")
    matched = {name: _array(name, named[name], spec, batch_size(inputs)) for name, spec in inputs.items()}
    counts = {name: len(array) for name, array in matched.items() if array.ndim}
    if len(set(counts.values())) > 1:
        raise KerasBNError(f"examples differ in number: {counts}.")
    return matched


def _array(name: str, value: Any, spec: tf.TensorSpec, count: int | None) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)
    except (TypeError, ValueError) as error:
        raise KerasBNError(f"examples for input {name!r} are not {spec.dtype.name}: {error}.") from error
    array = array[:count] if array.ndim else array
    if not spec.shape.is_compatible_with(array.shape):
        raise KerasBNError(
            f"examples for input {name!r} have shape {array.shape}; the model takes {tuple(spec.shape)}."
        )
    return array
