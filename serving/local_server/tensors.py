"""TensorProto to array and back, with tensorflow_model_server's leniency: what it accepts is what its clients
send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

# The repeated field that carries a dtype's values, and the dtype of that field's numbers.
_FIELDS: dict[int, tuple[str, np.dtype]] = {
    types_pb2.DT_FLOAT: ("float_val", np.dtype(np.float32)),
    types_pb2.DT_DOUBLE: ("double_val", np.dtype(np.float64)),
    types_pb2.DT_INT32: ("int_val", np.dtype(np.int32)),
    types_pb2.DT_INT16: ("int_val", np.dtype(np.int32)),
    types_pb2.DT_INT8: ("int_val", np.dtype(np.int32)),
    types_pb2.DT_UINT8: ("int_val", np.dtype(np.int32)),
    types_pb2.DT_UINT16: ("int_val", np.dtype(np.int32)),
    types_pb2.DT_INT64: ("int64_val", np.dtype(np.int64)),
    types_pb2.DT_BOOL: ("bool_val", np.dtype(np.bool_)),
    types_pb2.DT_STRING: ("string_val", np.dtype(object)),
    types_pb2.DT_UINT32: ("uint32_val", np.dtype(np.uint32)),
    types_pb2.DT_UINT64: ("uint64_val", np.dtype(np.uint64)),
    types_pb2.DT_HALF: ("half_val", np.dtype(np.int32)),
    types_pb2.DT_BFLOAT16: ("half_val", np.dtype(np.int32)),
    types_pb2.DT_COMPLEX64: ("scomplex_val", np.dtype(np.float32)),
    types_pb2.DT_COMPLEX128: ("dcomplex_val", np.dtype(np.float64)),
}
# Fields whose numbers stand for the bits of another type.
_BITS = {types_pb2.DT_HALF, types_pb2.DT_BFLOAT16}
_COMPLEX = {types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128}
MAX_RANK = 64  # NumPy's; TensorFlow itself goes to 254
# As large as a message can be.
_MAX_BYTES = 2**31
# What a message of a few bytes may stand for, with one value in its typed field to be repeated.
_MAX_REPEATED_BYTES = 2**26


class Malformed(ValueError):
    """A TensorProto that is no tensor."""


def numpy_dtype(dtype: int) -> np.dtype:
    """The NumPy dtype of a DataType number: object for strings, ml_dtypes' for bfloat16."""
    return np.dtype(tf.dtypes.as_dtype(dtype).as_numpy_dtype)


def datatype(dtype: np.dtype) -> int:
    """The DataType number of a NumPy dtype."""
    return tf.dtypes.as_dtype(dtype).as_datatype_enum


def dtype_name(dtype: int) -> str:
    """TensorFlow's short name of a DataType number: `float`, `int64`, `string`."""
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def to_array(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The array a TensorProto stands for.

    `tensor_content` goes before the typed field. Of a typed field with too few values the last is repeated,
    of one with none zeros are made, and values in excess are ignored (`tf.make_ndarray` refuses those).

    Raises:
        Malformed: no such dtype, no such shape, or `tensor_content` of another size.
    """
    if proto.dtype not in _FIELDS:
        raise Malformed(f"dtype {proto.dtype}")
    shape = _shape(proto)
    if proto.tensor_content:
        return _from_content(proto, shape)
    name, dtype = _FIELDS[proto.dtype]
    return _from_values(getattr(proto, name), proto.dtype, dtype, shape)


def _shape(proto: tensor_pb2.TensorProto) -> list[int]:
    if proto.tensor_shape.unknown_rank:
        return []
    shape = [dim.size for dim in proto.tensor_shape.dim]
    # NumPy refuses [0, 2**62] as too big, so an empty tensor is held to its other dimensions.
    total = math.prod(max(size, 1) for size in shape) * numpy_dtype(proto.dtype).itemsize
    if len(shape) > MAX_RANK or any(size < 0 for size in shape) or total > _MAX_BYTES:
        raise Malformed(f"shape {shape[:8]}")
    return shape


def _from_content(proto: tensor_pb2.TensorProto, shape: list[int]) -> np.ndarray:
    if proto.dtype == types_pb2.DT_STRING:
        return _strings(proto.tensor_content, math.prod(shape)).reshape(shape)
    dtype = numpy_dtype(proto.dtype)
    if len(proto.tensor_content) != math.prod(shape) * dtype.itemsize:
        raise Malformed("size of tensor_content")
    return np.frombuffer(proto.tensor_content, dtype).reshape(shape)


def _strings(content: bytes, count: int) -> np.ndarray:
    """Strings packed as all their lengths (varints), then all their bytes."""
    sizes, position = [], 0
    for _ in range(count):
        size = shift = 0
        while True:
            if position >= len(content):
                raise Malformed("lengths in tensor_content")
            byte = content[position]
            position += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        sizes.append(size)
    if position + sum(sizes) != len(content):
        raise Malformed("size of tensor_content")
    array = np.empty(count, object)
    for index, size in enumerate(sizes):
        array[index] = content[position : position + size]
        position += size
    return array


def _from_values(values: Sequence[Any], dtype: int, field_dtype: np.dtype, shape: list[int]) -> np.ndarray:
    count = math.prod(shape)
    width = 2 if dtype in _COMPLEX else 1
    if len(values) < count * width and count * numpy_dtype(dtype).itemsize > _MAX_REPEATED_BYTES:
        raise Malformed(f"shape {shape[:8]} for {len(values)} values")
    given = np.array(values[: count * width], field_dtype)
    if dtype == types_pb2.DT_STRING:
        given = given if given.size else np.array([b""], object)
    elif dtype in _BITS:
        given = given.astype(np.uint16).view(numpy_dtype(dtype))
    elif dtype in _COMPLEX:
        given = given[: given.size // 2 * 2].view(numpy_dtype(dtype))
    else:
        given = given.astype(numpy_dtype(dtype), copy=False)
    if given.size < count:
        given = np.concatenate(
            [given, np.full(count - given.size, given[-1] if given.size else 0, given.dtype)]
        )
    return given[:count].reshape(shape)


def to_proto(array: np.ndarray, dtype: int, proto: tensor_pb2.TensorProto, packed: bool = False) -> None:
    """Write `array` into `proto`: into the dtype's typed field or, if `packed`, into `tensor_content`."""
    proto.dtype = dtype
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if packed:
        proto.tensor_content = _packed_strings(array) if dtype == types_pb2.DT_STRING else array.tobytes()
        return
    values = array.reshape(-1)
    if dtype in _BITS:
        values = values.view(np.uint16)
    elif dtype in _COMPLEX:
        values = values.view(_FIELDS[dtype][1])
    getattr(proto, _FIELDS[dtype][0]).extend(values.tolist())


def _packed_strings(array: np.ndarray) -> bytes:
    lengths = bytearray()
    for value in array.flat:
        size = len(value)
        while size > 127:
            lengths.append(size & 127 | 128)
            size >>= 7
        lengths.append(size)
    return bytes(lengths) + b"".join(array.flat)
