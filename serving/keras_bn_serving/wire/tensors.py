"""NumPy arrays to and from TensorProto.

A TensorProto may be TensorFlow's own message or the one of `messages`, whose packed fields are bytes.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras_bn_serving.wire.dtypes import BY_NAME, BY_NUMBER, DType, name_of, numpy_dtype
from keras_bn_serving.wire.errors import UnimplementedError
from keras_bn_serving.wire.messages import MESSAGES

MAX_RANK = 64  # NumPy's; TensorFlow itself goes to 254
_MAX_ELEMENTS = 2**31  # as many as a message can hold bytes
_MAX_REPEATED_BYTES = 2**26  # what one value, repeated to fill a shape, may stand for
_KEY_TAG, _VALUE_TAG = b"\x0a", b"\x12"  # fields 1 and 2, length-delimited: an entry of a map
_INPUTS_TAG = b"\x12"  # PredictRequest.inputs = 2
_CONTENT_TAG = b"\x22"  # TensorProto.tensor_content = 4
_FIXED_SIZE = {"float32", "float64"}  # on the wire, a packed field of these is the values' bytes


def decode(tensor: Any, strict: bool = False, content: bytes | memoryview = b"") -> np.ndarray:
    """Return the array of a TensorProto, whichever of its two encodings it has.

    Fewer values than the shape asks for mean that the last one is repeated (or zero if there is none), as
    TensorFlow reads them. Strings are bytes in an object array. Numbers of `tensor_content` are a read-only
    view of the content.

    Args:
        tensor: the message.
        strict: refuse more values than the shape asks for, which TensorFlow ignores.
        content: the `tensor_content`, if it is not in the message.

    Raises:
        UnimplementedError: NumPy has no such dtype.
        ValueError: the message is no tensor.
    """
    if tensor.dtype not in BY_NUMBER:
        raise UnimplementedError(f"there is no NumPy dtype for tensors of type {tensor.dtype}")
    entry, content = BY_NUMBER[tensor.dtype], content or tensor.tensor_content
    shape = [] if tensor.tensor_shape.unknown_rank else [dim.size for dim in tensor.tensor_shape.dim]
    # NumPy refuses [0, 2**62] as too big, so an empty tensor is held to its other dimensions.
    if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise ValueError(f"a tensor cannot have the shape {shape[:MAX_RANK]}")
    count = math.prod(shape)
    if not content:
        return _from_field(tensor, entry, count, strict).reshape(shape)
    if entry.name == "DT_STRING":
        return _object_array(_split_strings(bytes(content), count)).reshape(shape)
    return np.frombuffer(content, numpy_dtype(entry.name).newbyteorder("<")).reshape(shape)


def _from_field(tensor: Any, entry: DType, count: int, strict: bool) -> np.ndarray:
    if entry.stored in _FIXED_SIZE and not isinstance(tensor, MESSAGES["TensorProto"]):
        # 200 times as fast, of an image, as a loop over the values in TensorFlow's message.
        tensor = MESSAGES["TensorProto"].FromString(tensor.SerializeToString())
    values, dtype = _stored(getattr(tensor, entry.field), entry.stored), numpy_dtype(entry.name)
    values = values.astype(dtype, copy=False) if entry.field == "int_val" else values.view(dtype)
    if strict and values.size > count:
        raise ValueError(f"{values.size} values were sent for a {entry.name} tensor of {count} elements")
    if not values.size:
        values = np.array([b""], object) if entry.name == "DT_STRING" else np.zeros(1, dtype)
    if values.size < count:
        if count * dtype.itemsize > _MAX_REPEATED_BYTES:
            raise ValueError(f"{values.size} values were sent for {count} elements")
        values = np.pad(values, (0, count - values.size), mode="edge")
    return values[:count]


def _stored(values: Any, dtype: str) -> np.ndarray:
    if isinstance(values, bytes):
        return np.frombuffer(values, np.dtype(dtype).newbyteorder("<"))
    if dtype == "object":
        return _object_array(list(values))
    wide = "int32" if dtype == "uint16" else dtype  # half_val is int32, and its lower 16 bits count
    return np.array(values, wide).astype(dtype, copy=False)


def _object_array(strings: list[bytes]) -> np.ndarray:
    array = np.empty(len(strings), object)
    array[:] = strings
    return array


def _split_strings(content: bytes, count: int) -> list[bytes]:
    """All lengths as varints, then all bytes: how TensorFlow lays strings out in tensor_content."""
    if count > len(content):  # each has at least a length
        raise ValueError(f"{len(content)} bytes were sent for {count} strings")
    lengths, at = [], 0
    for _ in range(count):
        length, at = read_varint(content, at)
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise ValueError(f"{len(content)} bytes were sent for strings of {at + sum(lengths)}")
    strings = []
    for length in lengths:
        strings.append(content[at : at + length])
        at += length
    return strings


def write(array: np.ndarray, tensor: Any, packed: bool = False) -> None:
    """Write `array` into TensorFlow's TensorProto, as its server does.

    The values go into the typed field of the dtype or, if `packed`, numbers go into `tensor_content`.
    """
    entry = BY_NAME[name_of(array.dtype)]
    tensor.dtype = entry.number
    tensor.tensor_shape.SetInParent()
    for size in array.shape:
        tensor.tensor_shape.dim.add().size = size
    if packed and entry.name != "DT_STRING":
        tensor.tensor_content = array.tobytes()
        return
    values = array.reshape(-1)
    if entry.field != "int_val":
        values = values.view(entry.stored)
    if entry.stored in _FIXED_SIZE:
        raw = values.astype(np.dtype(entry.stored).newbyteorder("<"), copy=False).tobytes()
        tensor.MergeFromString(_tag(entry.field) + encode_varint(len(raw)) + raw)
    else:
        getattr(tensor, entry.field).extend(values.tolist())


def encode_inputs(
    inputs: Mapping[str, np.ndarray], dtypes: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """Yield the pieces of PredictRequest.inputs, the arrays themselves among them.

    A protobuf message is the concatenation of its fields, so these follow a serialized PredictRequest and
    one join is the only copy of the data. (Through a TensorProto object it would be copied three times.)
    """
    for name, array in inputs.items():
        tensor = MESSAGES["TensorProto"](dtype=BY_NAME[dtypes[name]].number)
        tensor.tensor_shape.dim.extend(MESSAGES["Dim"](size=size) for size in array.shape)
        content: list[bytes | memoryview] = []
        if dtypes[name] == "DT_STRING":
            tensor.string_val.extend(array.ravel().tolist())
        else:
            raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
            content = [_CONTENT_TAG + encode_varint(raw.nbytes), raw]
        content.insert(0, tensor.SerializeToString())
        size = sum(map(len, content))
        key = name.encode()
        head = _KEY_TAG + encode_varint(len(key)) + key + _VALUE_TAG + encode_varint(size)
        yield _INPUTS_TAG + encode_varint(len(head) + size) + head
        yield from content


@functools.cache
def _tag(field: str) -> bytes:
    """What precedes the length of a packed field of TensorProto."""
    return encode_varint(MESSAGES["TensorProto"].DESCRIPTOR.fields_by_name[field].number << 3 | 2)


def encode_varint(number: int) -> bytes:
    """A number of protobuf's wire format."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number of protobuf's wire format at `at`, and where it ends; ValueError if it is cut off."""
    number = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError("a number is cut off")
