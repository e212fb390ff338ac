"""JSON values to arrays: row format (`instances`) and columnar format (`inputs`)."""

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from keras_bn_serving.local_server.quoting import json_type, quote
from keras_bn_serving.wire import json_values
from keras_bn_serving.wire.dtypes import BY_NUMBER, name_of, numpy_dtype
from keras_bn_serving.wire.errors import InvalidArgumentError, ServingError, UnimplementedError
from keras_bn_serving.wire.tensors import MAX_RANK

Inputs = Mapping[str, meta_graph_pb2.TensorInfo]
# The JSON types of each kind of dtype, and the dtypes that have no JSON form, there as here.
_JSON_TYPES: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}, "O": {str, dict}}
_NO_JSON = [np.dtype(np.float16), np.dtype(np.uint16)]
_SEVERAL = "as multiple input tensors required as per tensorinfo_map"


def columns(value: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    """Arrays by alias from the value of `inputs`: one tensor, or an object with a tensor for each alias."""
    if not isinstance(value, dict) or json_values.is_base64(value):
        if len(inputs) != 1:
            raise InvalidArgumentError(f"inputs is a plain value/list, but expecting an object {_SEVERAL}")
        value = dict.fromkeys(inputs, value)
    for alias in sorted(inputs):
        if alias not in value:
            raise InvalidArgumentError(f"Missing named input: {alias} in 'inputs' object.")
    return {alias: to_array(value[alias], info.dtype) for alias, info in inputs.items()}


def rows(instances: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    """Arrays by alias from the value of `instances`, whose element i is row i of every input."""
    if not isinstance(instances[0], dict) or json_values.is_base64(instances[0]):
        if len(inputs) != 1:
            what = f"instances is a plain list, but expecting list of objects {_SEVERAL}"
            raise InvalidArgumentError(what)
        for index, element in enumerate(instances):
            if isinstance(element, dict) and not json_values.is_base64(element):
                what = f"Expecting value/list but got object at item {index} of input list"
                raise InvalidArgumentError(what)
        return {alias: _column(instances, info.dtype, "") for alias, info in inputs.items()}
    for index, element in enumerate(instances):
        if not isinstance(element, dict):
            raise InvalidArgumentError(f"Expecting object but got list at item {index} of input list")
        if element.keys() != set(inputs):
            extra = [key for key in element if key not in inputs]
            where = f"Failed to process element: {index}{' key: ' if extra else ''}{''.join(extra[:1])}"
            what = f"JSON object: {quote(element)} keys must be equal to: {','.join(sorted(inputs))}"
            if extra:
                what = f"Error: INVALID_ARGUMENT: JSON object: does not have named input: {extra[0]}"
            raise InvalidArgumentError(f"{where} of 'instances' list. {what}")
    return {
        alias: _column([element[alias] for element in instances], info.dtype, f" key: {alias}")
        for alias, info in inputs.items()
    }


def _column(values: Any, dtype: int, where: str) -> np.ndarray:
    try:
        return to_array(values, dtype)
    except ServingError:
        _explain_rows(_lists(values), dtype, where)
        raise


def _explain_rows(values: list[Any], dtype: int, where: str) -> None:
    """Raise the error of the first row that is no tensor by itself, or not of the first row's shape."""
    first: list[int] = []
    for index, value in enumerate(values):
        shape = _shape(value)
        try:
            _explain(value, dtype, shape)
            if index == 0:
                first = shape
            sizes = math.prod(first), math.prod(shape)
            if sizes[0] != sizes[1]:
                raise InvalidArgumentError(f"Expecting tensor size: {sizes[0]} but got: {sizes[1]}")
            if first != shape:
                shapes = [f"[{','.join(map(str, one))}]" for one in (first, shape)]
                raise InvalidArgumentError(f"Expecting shape {shapes[0]} but got: {shapes[1]}")
        except ServingError as error:
            what = f"Failed to process element: {index}{where} of 'instances' list. Error: {error.status}"
            raise InvalidArgumentError(what) from None


def _explain(value: Any, dtype: int, shape: list[int], level: int = 0) -> None:
    """Raise the error of the first value in a nesting that keeps it from being a tensor of this shape."""
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            where = f"at incorrect level: {level + 1} in the JSON DOM. Expected at level: {rank}"
            raise InvalidArgumentError(f"JSON Value: {quote(value)} found {where}")
        _cast([value], _dtype(dtype))
        return
    if level >= rank:
        raise InvalidArgumentError(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(value) != shape[level]:
        what = f"Encountered list at unexpected size: {len(value)} at level: {level}"
        raise InvalidArgumentError(f"{what} expected size: {shape[level]}")
    for item in value:
        _explain(item, dtype, shape, level + 1)


def to_array(value: Any, dtype: int) -> np.ndarray:
    """The tensor of type `dtype` (a DataType number) that a JSON value stands for, of its nesting's shape.

    The first element of each list says how long the lists within it are, and how deep the nesting is.
    INVALID_ARGUMENT for ragged nesting and other types, UNIMPLEMENTED for a dtype without JSON form.
    """
    target = _dtype(dtype)
    if isinstance(value, list) and value and all(isinstance(item, np.ndarray) for item in value):
        alike = len({item.shape for item in value}) == 1
        value = np.stack(value) if alike else _lists(value)
    if isinstance(value, np.ndarray):
        return _cast(value.reshape(-1), target).reshape(value.shape)
    shape = _shape(value)
    if len(shape) > MAX_RANK:
        raise InvalidArgumentError(f"A tensor has at most {MAX_RANK} dimensions")
    level: Any = [value]
    for size in shape:
        if not all(isinstance(item, list) and len(item) == size for item in level):
            _explain(_lists(value), dtype, shape)
        level = list(chain.from_iterable(level))
    if any(isinstance(item, list) for item in level):
        _explain(_lists(value), dtype, shape)
    return _cast(level, target).reshape(shape)


def _shape(value: Any) -> list[int]:
    shape: list[int] = []
    while isinstance(value, list | np.ndarray):
        if isinstance(value, np.ndarray):
            return [*shape, *value.shape]
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _lists(value: Any) -> Any:
    """A value with lists in the place of arrays."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_lists(item) for item in value] if isinstance(value, list) else value


def _dtype(number: int) -> np.dtype:
    return numpy_dtype(BY_NUMBER[number].name) if number in BY_NUMBER else np.dtype(np.void)


def _cast(flat: Any, target: np.dtype) -> np.ndarray:
    """A list of JSON values, or an array of numbers, as an array of dtype `target`."""
    types: set[type] = _JSON_TYPES.get(target.kind, set()) if target not in _NO_JSON else set()
    if len(flat) and not types:
        what = f"Conversion of JSON Value: {quote(flat[0])} to type: {_name(target)}"
        raise UnimplementedError(what)
    limits = np.iinfo(target if target.itemsize >= 4 else np.int32) if target.kind in "iu" else None

    def fits(item: Any) -> bool:
        return type(item) in types and (limits is None or limits.min <= item <= limits.max)

    if isinstance(flat, np.ndarray) and fits(flat.min().item()) and fits(flat.max().item()):
        wrong = []
    else:
        wrong = [item for item in (flat.tolist() if isinstance(flat, np.ndarray) else flat) if not fits(item)]
    if wrong:
        what = f"JSON Value: {quote(wrong[0])} Type: {json_type(wrong[0])}"
        raise InvalidArgumentError(f"{what} is not of expected type: {_name(target)}")
    if target.kind == "O":
        array = np.empty(len(flat), object)
        array[:] = [to_bytes(item) for item in flat]
        return array
    with np.errstate(over="ignore"):  # narrow integers wrap, floats become infinite, there as here
        array = np.asarray(flat, limits.dtype if limits else np.float64).astype(target)
    if target.kind == "f":  # the threads that read requests there flush denormal numbers to zero
        array[np.abs(array) < np.finfo(target).smallest_normal] *= 0
    return array


def _name(dtype: np.dtype) -> str:
    """TensorFlow's short name of a dtype: `float`, `int64`, `string`."""
    return name_of(dtype).removeprefix("DT_").lower()


def to_bytes(value: Any) -> bytes:
    """The bytes that a JSON string or a base64 object stands for; blanks and lack of padding are forgiven."""
    if isinstance(value, str):
        return json_values.from_text(value)
    if not json_values.is_base64(value):
        raise InvalidArgumentError(f"JSON Value: {quote(value)} not formatted correctly for base64 data")
    try:
        return json_values.from_base64(value)
    except ValueError:
        raise InvalidArgumentError("Unable to base64 decode") from None
