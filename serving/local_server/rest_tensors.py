"""The values of REST requests as arrays: row format (`instances`) and columnar format (`inputs`).

Both go the quick way first, over whole arrays; only when that fails are the elements walked through one by
one for the message.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.local_server import tensors
from serving.local_server.json_reader import Numbers
from serving.local_server.json_writer import quote_value
from serving.local_server.status import StatusError, invalid_argument

Inputs = Mapping[str, meta_graph_pb2.TensorInfo]
_INT32 = (-(2**31), 2**31 - 1)
_RANGES = {
    types_pb2.DT_INT32: _INT32,
    types_pb2.DT_INT16: _INT32,
    types_pb2.DT_INT8: _INT32,
    types_pb2.DT_UINT8: _INT32,
    types_pb2.DT_INT64: (-(2**63), 2**63 - 1),
    types_pb2.DT_UINT32: (0, 2**32 - 1),
    types_pb2.DT_UINT64: (0, 2**64 - 1),
}
_FLOATS = (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE)


def columns(value: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    """Arrays by alias from the value of `inputs`: one tensor, or an object with a tensor for each alias."""
    if not isinstance(value, dict) or is_base64(value):
        if len(inputs) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required "
                "as per "
                "tensorinfo_map"
            )
        value = dict.fromkeys(inputs, value)
    arrays = {}
    for alias in sorted(inputs):
        if alias not in value:
            raise invalid_argument(f"Missing named input: {alias} in 'inputs' object.")
        arrays[alias] = to_array(value[alias], inputs[alias].dtype, alias)
    return arrays


def rows(instances: list[Any], inputs: Inputs) -> dict[str, np.ndarray]:
    """Arrays by alias from the value of `instances`, whose element i is row i of every input."""
    named = isinstance(instances[0], dict) and not is_base64(instances[0])
    if not named and len(inputs) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per "
            "tensorinfo_map"
        )
    for index, element in enumerate(instances):
        if named and not (isinstance(element, dict) and not is_base64(element)):
            raise invalid_argument(f"Expecting object but got list at item {index} of input list")
        if not named and isinstance(element, dict) and not is_base64(element):
            raise invalid_argument(f"Expecting value/list but got object at item {index} of input list")
    if named and any(element.keys() != inputs.keys() for element in instances):
        raise _key_error(instances, inputs)
    arrays = {}
    for alias, info in inputs.items():
        column = [element[alias] for element in instances] if named else instances
        try:
            arrays[alias] = to_array(column, info.dtype, alias)
        except StatusError as error:
            raise _row_error(column, info.dtype, f" key: {alias}" if named else "") or error from None
    return arrays


def to_array(value: Any, dtype: int, alias: str = "") -> np.ndarray:
    """The tensor of type `dtype` that a JSON value stands for; its shape is that of the nesting.

    Raises:
        StatusError: INVALID_ARGUMENT for ragged nesting and for a value of another type; UNIMPLEMENTED for a
            dtype that has no JSON form.
    """
    if isinstance(value, Numbers):
        array = from_numbers(value.array, dtype)
        return array if array is not None else to_array(value.to_list(), dtype)
    if isinstance(value, list) and value and all(isinstance(item, Numbers) for item in value):
        arrays = [item.array for item in value]
        alike = len({array.shape for array in arrays}) == 1
        array = from_numbers(np.stack(arrays), dtype) if alike else None
        if array is not None:
            return array
    flat, shape = _flatten(value)
    if len(shape) > tensors.MAX_RANK:
        raise invalid_argument(f"tensor parsing error: {alias}")
    if flat is None:
        _explain(value, dtype, shape)
        raise invalid_argument("Encountered a list at an unexpected place")
    return _cast(flat, dtype).reshape(shape)


def from_numbers(array: np.ndarray, dtype: int) -> np.ndarray | None:
    """`array` as `dtype`, or None where the elements have to be looked at one by one."""
    if dtype in _FLOATS:
        with np.errstate(over="ignore"):
            return array.astype(tensors.numpy_dtype(dtype))
    if dtype in _RANGES and array.dtype == np.int64:
        low, high = _RANGES[dtype]
        if array.min() >= low and array.max() <= high:
            return array.astype(tensors.numpy_dtype(dtype))
    return None


def _flatten(value: Any) -> tuple[list[Any] | None, list[int]]:
    """The leaves of a nesting of lists, None if it is ragged, and the shape its first elements say it has."""
    shape: list[int] = []
    level, ragged = [value], False
    while level and isinstance(level[0], list | Numbers) and len(shape) <= tensors.MAX_RANK:
        level = [item.to_list() if isinstance(item, Numbers) else item for item in level]
        size = len(level[0])
        shape.append(size)
        if ragged or any(type(item) is not list or len(item) != size for item in level):
            ragged, level = True, level[0]
        else:
            level = list(chain.from_iterable(level))
    if any(isinstance(item, list | Numbers) for item in level):
        ragged = True
    return (None if ragged else level), shape


def _cast(flat: list[Any], dtype: int) -> np.ndarray:
    types = set(map(type, flat))
    if dtype in _FLOATS:
        if types <= {int, float}:
            with np.errstate(over="ignore"):
                return np.array(flat, np.float64).astype(tensors.numpy_dtype(dtype))
    elif dtype in _RANGES:
        low, high = _RANGES[dtype]
        if types <= {int} and (not flat or (min(flat) >= low and max(flat) <= high)):
            return np.array(flat, np.uint64 if high == 2**64 - 1 else np.int64).astype(
                tensors.numpy_dtype(dtype)
            )
    elif dtype == types_pb2.DT_BOOL:
        if types <= {bool}:
            return np.array(flat, np.bool_)
    elif dtype == types_pb2.DT_STRING and types <= {str, dict}:
        array = np.empty(len(flat), object)
        array[:] = [to_bytes(item) for item in flat]
        return array
    for item in flat:
        _check_leaf(item, dtype)
    return np.empty(len(flat), tensors.numpy_dtype(dtype))


def _check_leaf(item: Any, dtype: int) -> None:
    """Raise unless `item` is a value of type `dtype`."""
    name = tensors.dtype_name(dtype)
    if dtype in _FLOATS:
        good = type(item) in (int, float)
    elif dtype in _RANGES:
        good = type(item) is int and _RANGES[dtype][0] <= item <= _RANGES[dtype][1]
    elif dtype == types_pb2.DT_BOOL:
        good = type(item) is bool
    elif dtype == types_pb2.DT_STRING:
        if isinstance(item, dict):
            to_bytes(item)
        good = isinstance(item, str | dict)
    else:
        raise StatusError("UNIMPLEMENTED", f"Conversion of JSON Value: {quote_value(item)} to type: {name}")
    if not good:
        raise invalid_argument(
            f"JSON Value: {quote_value(item)} Type: {json_type(item)} is not of expected type: {name}"
        )


def json_type(value: Any) -> str:
    """The name of a JSON value's type in error messages."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", Numbers: "Array"}
    return names.get(type(value), "Number")


def is_base64(value: dict[str, Any]) -> bool:
    """Whether an object stands for bytes: `{"b64": "..."}`."""
    return len(value) == 1 and isinstance(value.get("b64"), str)


def to_bytes(value: Any) -> bytes:
    """The bytes that a JSON string or a base64 object stands for."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if not is_base64(value):
        raise invalid_argument(f"JSON Value: {quote_value(value)} not formatted correctly for base64 data")
    return decode_base64(value["b64"])


def decode_base64(text: str) -> bytes:
    """Standard base64: blanks skipped, padding optional but right where it is given."""
    text = re.sub(r"[ \t\r\n\v\f]", "", text)
    bare = text.rstrip("=")
    padding = -len(bare) % 4
    try:
        if len(text) - len(bare) not in (0, padding) or padding == 3:
            raise binascii.Error
        return base64.b64decode(bare + "=" * padding, validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


# The words of errors


def _explain(value: Any, dtype: int, shape: list[int]) -> None:
    """Raise what is wrong first, in the order of the text, with a ragged nesting or its leaves."""
    rank = len(shape)
    stack = [(value, 0)]
    while stack:
        item, level = stack.pop()
        if isinstance(item, Numbers):
            item = item.to_list()
        if isinstance(item, list):
            if level >= rank:
                raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {rank}")
            if len(item) != shape[level]:
                raise invalid_argument(
                    f"Encountered list at unexpected size: {len(item)} at level: {level} expected size: "
                    f"{shape[level]}"
                )
            stack.extend((child, level + 1) for child in reversed(item))
        elif level != rank:
            raise invalid_argument(
                f"JSON Value: {quote_value(item)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {rank}"
            )
        else:
            _check_leaf(item, dtype)


def _row_error(column: list[Any], dtype: int, where: str) -> StatusError | None:
    """What is wrong with the first row that cannot stand beside the first one."""
    first: np.ndarray | None = None
    for index, element in enumerate(column):
        try:
            array = to_array(element, dtype)
            if first is None:
                first = array
            if array.size != first.size:
                raise invalid_argument(f"Expecting tensor size: {first.size} but got: {array.size}")
            if array.shape != first.shape:
                raise invalid_argument(f"Expecting shape {_brackets(first)} but got: {_brackets(array)}")
        except StatusError as error:
            return invalid_argument(
                f"Failed to process element: {index}{where} of 'instances' list. Error: {error}"
            )
    return None


def _brackets(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _key_error(instances: list[dict[str, Any]], inputs: Inputs) -> StatusError:
    for index, element in enumerate(instances):
        for key in element:
            if key not in inputs:
                return invalid_argument(
                    f"Failed to process element: {index} key: {key} of 'instances' list. Error: "
                    "INVALID_ARGUMENT: "
                    f"JSON object: does not have named input: {key}"
                )
        if element.keys() != inputs.keys():
            return invalid_argument(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{quote_value(element)} keys must "
                f"be equal to: {','.join(sorted(inputs))}"
            )
    raise AssertionError("every element has the keys it should")
