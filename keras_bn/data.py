"""Batches of a model's inputs from any form of data that `Model.predict` accepts."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_bn._keras import flatten_layers, graph_of, is_optional, structures
from keras_bn.errors import KerasBNError


def batches(
    model: keras.Model, data: Any, batch_size: int | None = None, steps: int | None = None
) -> Batches:
    """Batches of inputs for `model`, checked one by one: structure, shape, and no NaN or infinity.

    Each batch has the structure in which the model takes its inputs: entries of a dictionary that the model
    does not take are dropped, the order is the model's, and an optional input may be None. The preprocessor
    of a KerasHub task is applied, as its `predict` does.

    Args:
        model: Model whose input shapes the batches are checked against.
        data: An array, or a list, tuple or dict of arrays in the structure of the model's inputs, also of
            pandas; a `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch `DataLoader`, or any iterable
            of batches. If a batch is `(x, y)` or `(x, y, weights)`, x is used, as in `Model.predict`. Batches
            without examples are skipped.
        batch_size: Number of examples per batch of arrays. If None, 32. It must be None for data that comes
            in batches.
        steps: Number of batches after which to stop. It is required for data that never ends.

    Returns:
        An iterable of `total` batches. `total` is None if the number is not known. `reiterable` is False for
        a generator or an iterator, which can be read only once.

    Raises:
        KerasBNError: Immediately, if the arguments contradict each other. While iterating, if a batch does
            not fit the model or is not finite, if there is no batch, or if there are fewer than `steps`.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> [x.shape for x in batches(model, np.zeros((5, 2)), batch_size=2)]
    [(2, 2), (2, 2), (1, 2)]
    """
    for name, count in (("steps", steps), ("batch_size", batch_size)):
        if count is not None and not _is_count(count):
            raise KerasBNError(f"{name}={count!r}: it must be an integer of at least 1, or None.")
    _check_leaves(data)
    if _is_arrays(data):
        return Batches(model, _Slices(keras.tree.map_structure(_unlabelled, data), batch_size or 32), steps)
    if isinstance(data, (str, bytes)) or not isinstance(data, (Iterable, keras.utils.PyDataset)):
        raise KerasBNError(
            f"data is a {type(data).__name__}; pass what Model.predict takes: arrays, a tf.data.Dataset, "
            "a PyDataset, or a generator of batches."
        )
    if batch_size is not None:
        raise KerasBNError(
            f"batch_size={batch_size} was given with a {type(data).__name__}, which comes in batches "
            "already; leave batch_size out."
        )
    result = Batches(model, data, steps)
    if result.total is None and _is_endless(data):
        raise KerasBNError("The data repeats without end; give the number of batches to read with steps=.")
    return result


@dataclass(frozen=True)
class Batches:
    """The iterable that `batches` returns."""

    model: keras.Model
    data: Any
    steps: int | None

    @property
    def reiterable(self) -> bool:
        """Whether it can be read more than once."""
        # Not by comparing iter(data) with data: a DataLoader starts its worker processes when it is iterated.
        return not isinstance(self.data, Iterator)

    @property
    def total(self) -> int | None:
        """The number of batches. None if it is known only after reading them."""
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
            inputs = keras.tree.map_structure(_readable, inputs)
            if any(0 in getattr(leaf, "shape", ()) for leaf in keras.tree.flatten(inputs)):
                continue
            yield _as_the_model_takes_them(self.model, _preprocessed(self.model, inputs), index)
            done += 1
        if not done:
            raise KerasBNError("There is no data: no batch has an example in it.")
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
        lengths = {len(leaf) for leaf in self._leaves()}
        if len(lengths) != 1:
            raise KerasBNError(f"The arrays have {sorted(lengths)} examples; they must have the same number.")

    def __len__(self) -> int:
        return math.ceil(len(self._leaves()[0]) / self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for i in range(len(self)):
            part = slice(i * self.batch_size, (i + 1) * self.batch_size)
            yield keras.tree.map_structure(
                lambda leaf, part=part: None if leaf is None else leaf[part], self.arrays
            )

    def _leaves(self) -> list[Any]:
        """The arrays, without missing optional inputs."""
        return [leaf for leaf in keras.tree.flatten(self.arrays) if leaf is not None]


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def _check_leaves(data: Any) -> None:
    """Refuse numbers and strings in place of arrays: they would be taken for batches."""
    leaves = keras.tree.flatten(data)
    if leaves and all(hasattr(leaf, "__array__") and not np.ndim(leaf) for leaf in leaves):
        raise KerasBNError("data has 0-d arrays only; pass arrays whose first axis is the examples.")
    plain = bool(leaves) and all(isinstance(leaf, (numbers.Number, str, bytes)) for leaf in leaves)
    if plain and isinstance(data, (list, tuple, dict)):
        raise KerasBNError(
            f"data is a {type(data).__name__} of Python {type(leaves[0]).__name__} values; convert it to an "
            "array first, with numpy.array(data), or to an array for each input."
        )


def _is_arrays(data: Any) -> bool:
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    return bool(leaves) and all(hasattr(leaf, "__array__") and np.ndim(leaf) for leaf in leaves)


def _unlabelled(leaf: Any) -> Any:
    """The array in a DataFrame or Series of pandas, whose slices would depend on its labels."""
    return np.asarray(leaf) if hasattr(leaf, "iloc") else leaf


def _readable(leaf: Any) -> Any:
    """A tensor of PyTorch as an array where Keras runs on another backend, which may not read it.

    NumPy reads neither what is on another device, nor what has a gradient, nor bfloat16.
    """
    torch = sys.modules.get("torch")
    if torch is None or keras.backend.backend() == "torch" or not isinstance(leaf, torch.Tensor):
        return leaf
    tensor = leaf.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _walk(data: Any) -> Iterable[Any]:
    if not isinstance(data, keras.utils.PyDataset):
        return data
    # A PyDataset may define no length (num_batches None): then `steps` ends the iteration.
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


def _preprocessed(model: keras.Model, inputs: Any) -> Any:
    """The inputs as the preprocessor of a KerasHub task makes them, where the model has one."""
    if getattr(model, "preprocessor", None) is None or not hasattr(model, "preprocess_samples"):
        return inputs
    return keras.utils.unpack_x_y_sample_weight(model.preprocess_samples(inputs))[0]


def _as_the_model_takes_them(model: keras.Model, inputs: Any, index: int) -> Any:
    """The inputs checked, in the structure and order in which the model takes them."""
    if not getattr(model, "inputs", None):  # subclassed, or not built yet: any shape may fit
        for i, leaf in enumerate(keras.tree.flatten(inputs)):
            _check(f"input {i}", None, leaf, index)
        return inputs
    structure = structures(graph_of(model))[0]
    if isinstance(inputs, dict):
        keys = _keys(structure)
        if missing := [key for key, tensor in keys.items() if key not in inputs and not is_optional(tensor)]:
            raise KerasBNError(
                f"Batch {index} of the data has no {missing}; the model's inputs are {list(keys)}."
            )
        names = {id(tensor): key for key, tensor in keys.items()}
        leaves = {id(tensor): inputs.get(key) for key, tensor in keys.items()}
    else:
        given = keras.tree.flatten(inputs)
        if len(given) != len(model.inputs):
            raise KerasBNError(
                f"Batch {index} of the data has {len(given)} array(s), the model takes {len(model.inputs)}: "
                f"{[tensor.name for tensor in model.inputs]}."
            )
        names = {id(tensor): tensor.name for tensor in model.inputs}
        leaves = {id(tensor): leaf for tensor, leaf in zip(model.inputs, given, strict=True)}
    for tensor in model.inputs:
        _check(names[id(tensor)], tensor, leaves[id(tensor)], index, _batch_size_is_fixed(model))
    taken = keras.tree.map_structure(lambda tensor: leaves[id(tensor)], structure)
    return taken[0] if isinstance(taken, (list, tuple)) and len(taken) == 1 else taken


def _check(name: str, tensor: Any, leaf: Any, index: int, fixed: bool = False) -> None:
    """Raise a KerasBNError unless an array can be what the model takes as an input."""
    if leaf is None and (tensor is None or is_optional(tensor)):
        return
    if not hasattr(leaf, "shape"):
        raise KerasBNError(
            f"Batch {index} of the data has a {type(leaf).__name__} for {name!r}; convert it to an array."
        )
    if tensor is not None:
        expected = tuple(tensor.shape) if fixed else (None, *tensor.shape[1:])
        if not _fits(tuple(leaf.shape), expected):
            raise KerasBNError(
                f"Batch {index} of the data has shape {tuple(leaf.shape)} for {name!r}, which takes "
                f"{expected}; check the batch dimension."
            )
    if not hasattr(leaf, "__array__"):  # sparse or ragged
        return
    values = keras.ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else np.asarray(leaf)
    if tensor is not None and tensor.dtype != "string" and values.dtype.kind in "OSUcMm":
        raise KerasBNError(
            f"Batch {index} of the data has dtype {values.dtype} for {name!r}, which takes "
            f"{tensor.dtype}; convert it to real numbers."
        )
    if not _finite(values):
        raise KerasBNError(
            f"Batch {index} of the data holds NaN or infinity in {name!r}; clean the data first."
        )


def _keys(structure: Any) -> dict[str, Any]:
    """The model's inputs by the keys it takes them under, which need not be their names."""
    if isinstance(structure, dict) and all(hasattr(value, "shape") for value in structure.values()):
        return dict(structure)
    return {tensor.name: tensor for tensor in keras.tree.flatten(structure)}


def _batch_size_is_fixed(model: keras.Model) -> bool:
    """Whether layers keep a state for each example, so that all batches must be of the size it was made for.

    Other models may have a known batch size as well, such as a Sequential from its first call, but it does
    not bind them.
    """
    return any(getattr(layer, "stateful", False) for layer in flatten_layers(model))


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    if len(shape) == len(expected) - 1 and expected[-1] == 1:  # Keras adds this axis itself
        expected = expected[:-1]
    elif len(shape) == len(expected) + 1 and shape[-1] == 1:  # and takes this one away
        shape = shape[:-1]
    return len(shape) == len(expected) and all(e in (None, s) for s, e in zip(shape, expected, strict=True))


def _finite(values: np.ndarray) -> bool:
    return values.dtype.kind in "OSUbiu" or bool(np.isfinite(values).all())
