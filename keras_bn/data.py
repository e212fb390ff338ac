"""Batches of a model's inputs from whatever `Model.predict` takes."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_bn.errors import KerasBNError


def batches(
    model: keras.Model, data: Any, batch_size: int | None = None, steps: int | None = None
) -> Batches:
    """Batches of inputs for `model`, checked one by one: structure, shape, and no NaN or infinity.

    Args:
        model: its input shapes are what the batches are checked against.
        data: an array, a list, tuple or dict of arrays as the model takes them, a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, or any iterable of batches. Of batches that are `(x, y)` or
            `(x, y, weights)`, x is used, as in `Model.predict`. Batches without examples are passed over.
        batch_size: examples per batch of arrays (32); everything else comes in batches already.
        steps: stop after so many batches; needed when the data does not end.

    Returns:
        An iterable, `total` batches long (None: not known). `reiterable` is False for a generator or an
        iterator, which can be walked once only.

    Raises:
        KerasBNError: at once if the arguments contradict each other; while iterating if a batch does not fit
            the model or is not finite, if there is none at all, or fewer than `steps`.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> [x.shape for x in batches(model, np.zeros((5, 2)), batch_size=2)]
    [(2, 2), (2, 2), (1, 2)]
    """
    for name, count in (("steps", steps), ("batch_size", batch_size)):
        if count is not None and not _is_count(count):
            raise KerasBNError(f"{name}={count!r}: it must be an integer of at least 1, or None.")
    _check_leaves(data)
    if _is_arrays(data):
        return Batches(model, _Slices(data, batch_size or 32), steps)
    if isinstance(data, (str, bytes)) or not isinstance(data, (Iterable, keras.utils.PyDataset)):
        raise KerasBNError(
            f"data is a {type(data).__name__}; pass what Model.predict takes: arrays, a tf.data.Dataset, "
            "a PyDataset, or a generator of batches."
        )
    if batch_size is not None:
        raise KerasBNError(
            f"batch_size={batch_size} was given with a {type(data).__name__}, which comes in batches; "
            "leave batch_size out."
        )
    result = Batches(model, data, steps)
    if result.total is None and _is_endless(data):
        raise KerasBNError("The data repeats without end; say how many batches to read with steps=.")
    return result


@dataclass(frozen=True)
class Batches:
    """What `batches` returns."""

    model: keras.Model
    data: Any
    steps: int | None

    @property
    def reiterable(self) -> bool:
        """Whether it can be walked more than once."""
        return isinstance(self.data, keras.utils.PyDataset) or iter(self.data) is not self.data

    @property
    def total(self) -> int | None:
        """The number of batches, None where only walking tells."""
        known = _known_length(self.data)
        if self.steps is None or known is None:
            return self.steps or known
        return min(self.steps, known)

    def __iter__(self) -> Iterator[Any]:
        done = 0
        for index, batch in enumerate(_walk(self.data)):
            if self.steps is not None and done == self.steps:
                return
            inputs = batch if isinstance(self.data, _Slices) else _unpacked(batch, index)
            _check(self.model, inputs, index)
            if any(0 in leaf.shape for leaf in keras.tree.flatten(inputs)):
                continue
            yield inputs
            done += 1
        if not done:
            raise KerasBNError("There is no data: it yields no batch with an example in it.")
        if self.steps is not None and done < self.steps:
            raise KerasBNError(
                f"The data ended after {done} of steps={self.steps} batches; lower steps or pass more data."
            )


@dataclass(frozen=True)
class _Slices:
    """Arrays cut into batches along their first axis."""

    arrays: Any
    batch_size: int

    def __post_init__(self) -> None:
        lengths = {len(leaf) for leaf in keras.tree.flatten(self.arrays)}
        if len(lengths) != 1:
            raise KerasBNError(f"The arrays have {sorted(lengths)} examples; they must have the same number.")

    def __len__(self) -> int:
        return math.ceil(len(keras.tree.flatten(self.arrays)[0]) / self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for i in range(len(self)):
            part = slice(i * self.batch_size, (i + 1) * self.batch_size)
            yield keras.tree.map_structure(lambda leaf, part=part: leaf[part], self.arrays)


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def _check_leaves(data: Any) -> None:
    """Refuse numbers and words where arrays are wanted: they would be taken for batches."""
    leaves = keras.tree.flatten(data)
    if leaves and all(hasattr(leaf, "__array__") and not np.ndim(leaf) for leaf in leaves):
        raise KerasBNError("data has 0-d arrays only; pass arrays whose first axis is the examples.")
    plain = bool(leaves) and all(isinstance(leaf, (numbers.Number, str, bytes)) for leaf in leaves)
    if plain and isinstance(data, (list, tuple, dict)):
        raise KerasBNError(
            f"data is a {type(data).__name__} of Python's {type(leaves[0]).__name__}; make it an array "
            "first, with numpy.array(data), or an array for each input."
        )


def _is_arrays(data: Any) -> bool:
    leaves = keras.tree.flatten(data)
    return bool(leaves) and all(hasattr(leaf, "__array__") and np.ndim(leaf) for leaf in leaves)


def _walk(data: Any) -> Iterable[Any]:
    if not isinstance(data, keras.utils.PyDataset):
        return data
    # A PyDataset may define no length (num_batches None): then `steps` stops the walk.
    total = _known_length(data)
    return (data[i] for i in (range(total) if total is not None else iter(int, 1)))


def _unpacked(batch: Any, index: int) -> Any:
    if isinstance(batch, (list, tuple)) and not 1 <= len(batch) <= 3:
        raise KerasBNError(
            f"Batch {index} of the data is a {type(batch).__name__} of {len(batch)}; it must be x, (x, y) or "
            "(x, y, weights), each of arrays."
        )
    return keras.utils.unpack_x_y_sample_weight(batch)[0]


def _known_length(data: Any) -> int | None:
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches
    try:
        return len(data)
    except TypeError:
        return None


def _is_endless(data: Any) -> bool:
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    # Where TensorFlow is not even imported there is no data set of its kind.
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not isinstance(data, tensorflow.data.Dataset):
        return False
    return bool(data.cardinality() == tensorflow.data.INFINITE_CARDINALITY)


def _check(model: keras.Model, inputs: Any, index: int) -> None:
    leaves = keras.tree.flatten(inputs)
    if not getattr(model, "inputs", None):  # subclassed, or not built yet: any shape may fit
        pairs = [(f"input {i}", None, leaf) for i, leaf in enumerate(leaves)]
    elif isinstance(inputs, dict):
        tensors = _named_inputs(model)
        names = list(tensors)
        if missing := [name for name in names if name not in inputs]:
            raise KerasBNError(f"Batch {index} of the data has no {missing}; the model's inputs are {names}.")
        if unknown := [name for name in inputs if name not in names]:
            raise KerasBNError(
                f"Batch {index} of the data has {unknown}, which the model does not take; its inputs are "
                f"{names}; leave out the rest."
            )
        pairs = [(name, tensor, inputs[name]) for name, tensor in tensors.items()]
    else:
        if len(leaves) != len(model.inputs):
            raise KerasBNError(
                f"Batch {index} of the data has {len(leaves)} array(s), the model takes {len(model.inputs)}: "
                f"{[tensor.name for tensor in model.inputs]}."
            )
        pairs = [(tensor.name, tensor, leaf) for tensor, leaf in zip(model.inputs, leaves, strict=True)]
    for name, tensor, leaf in pairs:
        if not hasattr(leaf, "shape"):
            raise KerasBNError(
                f"Batch {index} of the data has a {type(leaf).__name__} for {name!r}; make it an array."
            )
        if tensor is not None and not _fits(tuple(leaf.shape), tensor.shape):
            raise KerasBNError(
                f"Batch {index} of the data has shape {tuple(leaf.shape)} for {name!r}, which takes "
                f"{tensor.shape}; mind the batch dimension."
            )
        if not hasattr(leaf, "__array__"):  # sparse or ragged
            continue
        values = np.asarray(leaf)
        if tensor is not None and tensor.dtype != "string" and values.dtype.kind in "OSUcMm":
            raise KerasBNError(
                f"Batch {index} of the data has dtype {values.dtype} for {name!r}, which takes "
                f"{tensor.dtype}; convert it to real numbers."
            )
        if not _finite(values):
            raise KerasBNError(
                f"Batch {index} of the data holds NaN or infinity in {name!r}; clean the data first."
            )


def _named_inputs(model: keras.Model) -> dict[str, Any]:
    """The model's inputs by the keys it takes them under, which need not be their names."""
    structure = getattr(model, "_inputs_struct", None)
    return structure if isinstance(structure, dict) else {tensor.name: tensor for tensor in model.inputs}


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    if len(shape) == len(expected) - 1 and expected[-1] == 1:  # Keras adds this axis itself
        expected = expected[:-1]
    return len(shape) == len(expected) and all(e in (None, s) for s, e in zip(shape, expected, strict=True))


def _finite(values: np.ndarray) -> bool:
    return values.dtype.kind in "OSUbiu" or bool(np.isfinite(values).all())
