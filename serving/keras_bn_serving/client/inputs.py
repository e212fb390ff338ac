"""Convert a user's inputs to the arrays of a signature, or raise an error that describes the signature."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_bn_serving.client.metadata import Signature, TensorSpec
from keras_bn_serving.wire.dtypes import numpy_dtype
from keras_bn_serving.wire.errors import InvalidArgumentError, UnimplementedError


def prepare(x: Any, signature: Signature, check_shapes: bool = True) -> dict[str, np.ndarray]:
    """Return the inputs of `signature` by name; `x` is the value of its only input, or a dict by name."""
    inputs = signature.inputs
    if not isinstance(x, Mapping):
        if len(inputs) != 1:
            raise InvalidArgumentError(
                f"pass a dict of inputs by name: the signature wants {describe(inputs)}"
            )
        x = dict.fromkeys(inputs, x)
    missing = [name for name, spec in inputs.items() if name not in x and not spec.has_default]
    unknown = [name for name in x if name not in inputs]
    if missing or unknown:
        problem = "; ".join(
            f"{word} {', '.join(map(repr, names))}"
            for word, names in (("missing", missing), ("unknown", unknown))
            if names
        )
        raise InvalidArgumentError(f"wrong input names ({problem}): the signature wants {describe(inputs)}")
    arrays = {name: _of_dtype(name, value, inputs[name]) for name, value in x.items()}
    if check_shapes:
        for name, array in arrays.items():
            _check_shape(name, array.shape, inputs[name])
    return arrays


def describe(specs: Mapping[str, TensorSpec]) -> str:
    """Return `name: dtype (shape)` of each tensor, for messages."""
    return ", ".join(f"{name}: {spec}" for name, spec in sorted(specs.items())) or "nothing"


def _of_dtype(name: str, value: Any, spec: TensorSpec) -> np.ndarray:
    try:
        return to_strings(value) if spec.dtype == "DT_STRING" else _numbers(value, numpy_dtype(spec.dtype))
    except UnimplementedError:
        raise
    except Exception as error:  # whatever a value may raise when it is asked for its numbers
        raise InvalidArgumentError(f"input {name!r} should be {spec}: {error}") from error


def _numbers(value: Any, dtype: np.dtype) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype == dtype:
        return array
    between_integers = array.dtype.kind in "iu" and dtype.kind in "iu"
    if array.size and not between_integers and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"values of type {array.dtype} were given")
    if array.size and between_integers:
        limits = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise OverflowError(
                f"values from {low} to {high} were given, and it holds {limits.min} to {limits.max}"
            )
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not between_integers and not np.can_cast(array.dtype, dtype) and dtype.kind != "b":
        beyond = np.isinf(cast)
        if beyond.any() and (beyond := beyond & np.isfinite(array)).any():
            raise OverflowError(f"{array[beyond][0]} was given, which is beyond its range")
    return cast


def to_strings(value: Any) -> np.ndarray:
    """Return an object array of bytes from nested str, bytes and pathlib.Path (its contents)."""
    array = np.array(value, object) if not isinstance(value, np.ndarray) else value
    strings = np.empty(array.size, object)
    strings[:] = [_bytes(item) for item in array.ravel().tolist()]
    return strings.reshape(array.shape)


def _bytes(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, pathlib.Path):
        try:
            return item.read_bytes()
        except OSError as error:
            raise ValueError(f"{item} cannot be read ({error.strerror})") from error
    raise TypeError(
        f"{type(item).__name__} was given, where str, bytes or pathlib.Path (its contents) will do"
    )


def _check_shape(name: str, shape: tuple[int, ...], spec: TensorSpec) -> None:
    wanted = spec.shape
    if wanted is None:
        return
    if len(wanted) == len(shape) and all(w in (None, s) for w, s in zip(wanted, shape, strict=True)):
        return
    hint = ""
    if wanted[:1] == (None,) and len(shape) == len(wanted) - 1:
        hint = "; for a batch of one add the batch axis: x[None], or [x]"
    raise InvalidArgumentError(f"input {name!r} should be {spec}, and its shape is {shape}{hint}")
