"""NumPy arrays to and from TensorProto, without a loop over numeric values."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_bn_serving.client.metadata import DTYPE_NAMES, DTYPE_NUMBERS, numpy_dtype
from keras_bn_serving.client.protobuf import MESSAGES
from keras_bn_serving.wire.errors import InternalError

# Field of TensorProto that holds each dtype when tensor_content does not; half_val holds 16-bit patterns.
_TYPED_FIELDS = {
    "DT_FLOAT": "float_val", "DT_DOUBLE": "double_val", "DT_BOOL": "bool_val",
    "DT_COMPLEX64": "scomplex_val", "DT_COMPLEX128": "dcomplex_val",
    "DT_INT32": "int_val", "DT_INT16": "int_val", "DT_INT8": "int_val", "DT_UINT8": "int_val",
    "DT_UINT16": "int_val",
    "DT_INT64": "int64_val", "DT_UINT32": "uint32_val", "DT_UINT64": "uint64_val",
    "DT_HALF": "half_val", "DT_BFLOAT16": "half_val",
}  # fmt: skip

_KEY_TAG, _VALUE_TAG = b"\x0a", b"\x12"  # fields 1 and 2, length-delimited: an entry of a map
_INPUTS_TAG = b"\x12"  # PredictRequest.inputs = 2
_CONTENT_TAG = b"\x22"  # TensorProto.tensor_content = 4


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def encode_inputs(inputs: dict[str, np.ndarray], dtypes: dict[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the pieces of PredictRequest.inputs, the arrays themselves among them.

    A protobuf message is the concatenation of its fields, so these follow a serialized PredictRequest and
    one join is the only copy of the data. (Through a TensorProto object it would be copied three times.)
    """
    for name, array in inputs.items():
        tensor = MESSAGES["TensorProto"](dtype=DTYPE_NUMBERS[dtypes[name]])
        tensor.tensor_shape.dim.extend(MESSAGES["Dim"](size=size) for size in array.shape)
        content: list[bytes | memoryview] = []
        if dtypes[name] == "DT_STRING":
            tensor.string_val.extend(array.ravel().tolist())
        else:
            raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
            content = [_CONTENT_TAG + _varint(raw.nbytes), raw]
        content.insert(0, tensor.SerializeToString())
        size = sum(map(len, content))
        key = name.encode()
        head = _KEY_TAG + _varint(len(key)) + key + _VALUE_TAG + _varint(size)
        yield _INPUTS_TAG + _varint(len(head) + size) + head
        yield from content


def decode(tensor: Any) -> np.ndarray:
    """Return the array of a TensorProto, whichever of its two encodings the server chose.

    Fewer values than the shape asks for mean that the last one is repeated, as TensorFlow reads them.
    Strings come as bytes in an object array.
    """
    name = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
    dtype = numpy_dtype(name)
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    count = int(np.prod(shape, dtype=np.int64))
    if name == "DT_STRING":
        values = np.empty(count, object)
        strings = (
            _split_strings(tensor.tensor_content, count) if tensor.tensor_content else list(tensor.string_val)
        )
        values[:] = strings + (strings[-1:] or [b""]) * (count - len(strings))
        return values.reshape(shape)
    values = _numbers(tensor, name, dtype)
    if values.size < count:
        filler = values[-1:] if values.size else np.zeros(1, dtype)
        values = np.concatenate([values, np.repeat(filler, count - values.size)])
    if values.size > count:
        raise InternalError(f"the server sent {values.size} values for a {name} tensor of shape {shape}")
    return values.reshape(shape)


def _numbers(tensor: Any, name: str, dtype: np.dtype) -> np.ndarray:
    wire = dtype.newbyteorder("<")
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, wire).astype(dtype)
    values = getattr(tensor, _TYPED_FIELDS[name])
    if isinstance(values, bytes):
        return np.frombuffer(values, wire).astype(dtype)
    if _TYPED_FIELDS[name] == "half_val":
        return np.array(values, np.uint16).view(dtype)
    return np.array(values, dtype)


def _split_strings(content: bytes, count: int) -> list[bytes]:
    """All lengths as varints, then all bytes: how TensorFlow lays strings out in tensor_content."""
    lengths, at = [], 0
    for _ in range(count):
        length, at = _read_varint(content, at)
        lengths.append(length)
    strings = []
    for length in lengths:
        strings.append(content[at : at + length])
        at += length
    return strings
