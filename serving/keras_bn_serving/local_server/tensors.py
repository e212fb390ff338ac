"""TensorProto to array and back, as leniently as TensorFlow: what it accepts is what clients send."""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

MAX_RANK = 64  # NumPy's; TensorFlow itself goes to 254
_MAX_BYTES = 2**31  # as large as a message can be
_MAX_REPEATED_BYTES = 2**26  # what one value, repeated to fill a shape, may stand for
# Of each DataType the repeated field that carries its values, and the dtype of the numbers in that field.
_FIELDS = {
    types_pb2.DT_FLOAT: ("float_val", np.float32),
    types_pb2.DT_DOUBLE: ("double_val", np.float64),
    types_pb2.DT_INT64: ("int64_val", np.int64),
    types_pb2.DT_UINT32: ("uint32_val", np.uint32),
    types_pb2.DT_UINT64: ("uint64_val", np.uint64),
    types_pb2.DT_BOOL: ("bool_val", np.bool_),
    types_pb2.DT_STRING: ("string_val", np.object_),
    types_pb2.DT_HALF: ("half_val", np.uint16),
    types_pb2.DT_BFLOAT16: ("half_val", np.uint16),
    types_pb2.DT_COMPLEX64: ("scomplex_val", np.float32),
    types_pb2.DT_COMPLEX128: ("dcomplex_val", np.float64),
}
for _name in ("INT32", "INT16", "INT8", "UINT8", "UINT16"):
    _FIELDS[types_pb2.DataType.Value(f"DT_{_name}")] = ("int_val", np.int32)
# The field holds their bits, or parts.
_VIEWED = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16, types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128)
NUMPY_DTYPES = {number: np.dtype(tf.dtypes.as_dtype(number).as_numpy_dtype) for number in _FIELDS}
DATATYPES = {dtype: number for number, dtype in NUMPY_DTYPES.items()}


def to_array(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """The array a TensorProto holds.

    Of a typed field with fewer values than the shape asks for the last one is repeated (or zero if there is
    none), and values in excess are ignored. What is no tensor is a ValueError.
    """
    try:
        dtype, content = NUMPY_DTYPES[proto.dtype], proto.tensor_content
        shape = [] if proto.tensor_shape.unknown_rank else [dim.size for dim in proto.tensor_shape.dim]
        # NumPy refuses [0, 2**62] as too big, so an empty tensor is held to its other dimensions.
        if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) > _MAX_BYTES:
            raise ValueError(f"shape {shape[:MAX_RANK]}")
        if not content:
            return _from_field(proto, dtype, math.prod(shape)).reshape(shape)
        if proto.dtype == types_pb2.DT_STRING:
            if len(content) < math.prod(shape):  # each has at least a length
                raise ValueError("fewer bytes than strings")
            return np.array(tf.io.parse_tensor(proto.SerializeToString(), tf.string).numpy(), object)
        return np.frombuffer(content, dtype).reshape(shape)
    except (KeyError, TypeError, OverflowError, tf.errors.OpError) as error:
        raise ValueError(str(error)) from error


def _from_field(proto: tensor_pb2.TensorProto, dtype: np.dtype, count: int) -> np.ndarray:
    name, stored = _FIELDS[proto.dtype]
    values: np.ndarray = np.array(getattr(proto, name), stored)
    values = values.view(dtype) if proto.dtype in _VIEWED else values.astype(dtype, copy=False)
    if not values.size:
        values = np.array([b""], object) if dtype.kind == "O" else np.zeros(1, dtype)
    if values.size < count:
        if count * dtype.itemsize > _MAX_REPEATED_BYTES:
            raise ValueError(f"{values.size} values for {count} elements")
        values = np.pad(values, (0, count - values.size), mode="edge")
    return values[:count]


def to_proto(array: np.ndarray, proto: tensor_pb2.TensorProto, packed: bool = False) -> None:
    """Write `array` into `proto`: its dtype's typed field or, if `packed`, numbers into `tensor_content`."""
    proto.dtype = DATATYPES[array.dtype]
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if packed and proto.dtype != types_pb2.DT_STRING:
        proto.tensor_content = array.tobytes()
        return
    name, stored = _FIELDS[proto.dtype]
    values = array.reshape(-1)
    getattr(proto, name).extend((values.view(stored) if proto.dtype in _VIEWED else values).tolist())
