"""TensorProto to array and back, as leniently as TensorFlow: what it accepts is what clients send."""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

MAX_RANK = 64  # NumPy's; TensorFlow itself goes to 254
_FIRST_REFERENCE = 101  # the DataTypes from here on are references to the others
_NOT_DATA = (tf.resource, tf.variant)
_MAX_BYTES = 2**31  # as large as a message can be
_MAX_REPEATED_BYTES = 2**26  # what one value, repeated to fill a shape, may stand for
# Of each dtype the repeated field that carries its values, and the dtype of the numbers in that field.
_FIELDS = {
    "float32": ("float_val", np.float32),
    "float64": ("double_val", np.float64),
    "int64": ("int64_val", np.int64),
    "uint32": ("uint32_val", np.uint32),
    "uint64": ("uint64_val", np.uint64),
    "bool": ("bool_val", np.bool_),
    "object": ("string_val", np.object_),
    "float16": ("half_val", np.uint16),
    "bfloat16": ("half_val", np.uint16),
    "complex64": ("scomplex_val", np.float32),
    "complex128": ("dcomplex_val", np.float64),
}
_SMALL_INTEGERS = ("int_val", np.int32)
_REINTERPRETED = ("float16", "bfloat16", "complex64", "complex128")  # the field holds their bits, or parts


def to_array(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The array a TensorProto holds.

    Of a typed field with fewer values than the shape asks for the last one is repeated, of one with none
    zeros are made, and values in excess are ignored (`tf.make_ndarray` refuses those). A ValueError if
    there is no such dtype or shape, or the `tensor_content` is of another size.
    """
    try:
        dtype = tf.dtypes.as_dtype(proto.dtype)
        shape = [] if proto.tensor_shape.unknown_rank else [dim.size for dim in proto.tensor_shape.dim]
        # NumPy refuses [0, 2**62] as too big, so an empty tensor is held to its other dimensions.
        size = math.prod(max(size, 1) for size in shape) * dtype.size
        data = proto.dtype < _FIRST_REFERENCE and dtype not in _NOT_DATA
        if not data or min(shape, default=0) < 0 or size > _MAX_BYTES:
            raise ValueError(f"{dtype.name} of shape {shape[:MAX_RANK]}")
        if not proto.tensor_content:
            return _from_field(proto, np.dtype(dtype.as_numpy_dtype), math.prod(shape)).reshape(shape)
        if dtype == tf.string:
            if len(proto.tensor_content) < math.prod(shape):  # each has at least a length
                raise ValueError("fewer bytes than strings")
            return np.array(tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy(), object)
        return np.frombuffer(proto.tensor_content, dtype.as_numpy_dtype).reshape(shape)
    except (TypeError, OverflowError, tf.errors.OpError) as error:
        raise ValueError(str(error)) from error


def _from_field(proto: tensor_pb2.TensorProto, dtype: np.dtype, count: int) -> np.ndarray:
    name, stored = _FIELDS.get(dtype.name, _SMALL_INTEGERS)
    values: np.ndarray = np.array(getattr(proto, name), stored)
    values = values.view(dtype) if dtype.name in _REINTERPRETED else values.astype(dtype)
    if not values.size:
        values = np.array([b""], object) if dtype.kind == "O" else np.zeros(1, dtype)
    if values.size < count:
        if count * dtype.itemsize > _MAX_REPEATED_BYTES:
            raise ValueError(f"{values.size} values for {count} elements")
        values = np.pad(values, (0, count - values.size), mode="edge")
    return values[:count]


def to_proto(array: np.ndarray, proto: tensor_pb2.TensorProto, packed: bool = False) -> None:
    """Write `array` into `proto`: its dtype's typed field or, if `packed`, numbers into `tensor_content`."""
    proto.dtype = datatype(array.dtype)
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if packed and array.dtype != object:
        proto.tensor_content = array.tobytes()
        return
    name, stored = _FIELDS.get(array.dtype.name, _SMALL_INTEGERS)
    values = array.reshape(-1)
    values = values.view(stored) if array.dtype.name in _REINTERPRETED else values
    getattr(proto, name).extend(values.tolist())


def datatype(dtype: np.dtype) -> int:
    """The DataType number of a NumPy dtype."""
    return tf.dtypes.as_dtype(dtype).as_datatype_enum
