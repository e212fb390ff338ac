"""PredictRequests read without a copy of the numbers in them.

protobuf copies `tensor_content` twice, once into the message and once out of it: for a batch of images, some
milliseconds. Here it is cut out of the bytes before they are parsed.
"""

from typing import NamedTuple

from tensorflow_serving.apis import predict_pb2

from keras_bn_serving.wire.tensors import encode_varint, read_varint

_LARGE = 1 << 16  # bytes; below, reading in Python takes longer than the copies
_INPUT, _KEY, _VALUE, _CONTENT = b"\x12\x0a\x12\x22"  # inputs = 2; key = 1, value = 2; tensor_content = 4
_MOST_FIELDS = 64  # that are looked at, of a message: texts are a field each, which protobuf reads faster
_VARINT, _DELIMITED = 0, 2  # kinds of fields


class PredictRequest(NamedTuple):
    """A request.

    Attributes:
        message: the request, without the contents of its large tensors.
        contents: those contents by alias, as views of the bytes that were read.
    """

    message: predict_pb2.PredictRequest
    contents: dict[str, memoryview]


class _Uncommon(Exception):
    """The bytes are not laid out as protobuf's writers do; its parser is asked what they mean."""


def read(data: bytes) -> PredictRequest:
    """Read a serialized PredictRequest.

    Raises:
        DecodeError: as PredictRequest.FromString does.
    """
    if len(data) >= _LARGE:
        try:
            return _cut(data)
        except (_Uncommon, ValueError):
            pass
    return PredictRequest(predict_pb2.PredictRequest.FromString(data), {})


def _cut(data: bytes) -> PredictRequest:
    contents: dict[str, memoryview] = {}
    kept: list[bytes] = []
    count = at = 0
    while at < len(data):
        if len(kept) == _MOST_FIELDS:
            raise _Uncommon
        begin, tag = at, data[at]
        start, at = _field(data, at, len(data))
        count += tag == _INPUT
        if tag == _INPUT and at - start >= _LARGE:
            alias, content, entry = _without_content(data, start, at)
            if content:
                contents[alias] = content
            kept.append(bytes([_INPUT]) + encode_varint(len(entry)) + entry)
        else:
            kept.append(data[begin:at])
    message = predict_pb2.PredictRequest.FromString(b"".join(kept))
    if len(message.inputs) != count:  # of equal aliases the last counts
        raise _Uncommon
    return PredictRequest(message, contents)


def _without_content(data: bytes, at: int, end: int) -> tuple[str, memoryview, bytes]:
    """The alias of an entry of `inputs`, the content of its tensor if any, and the entry without it."""
    head = at
    key, at = _field(data, at, end)
    value = at
    tensor, stop = _field(data, at, end)
    if (data[head], data[value : value + 1], stop) != (_KEY, bytes([_VALUE]), end):
        raise _Uncommon
    content = memoryview(b"")
    kept: list[bytes] = []
    at = tensor
    while at < end:
        if len(kept) == _MOST_FIELDS:
            raise _Uncommon
        begin, tag = at, data[at]
        start, at = _field(data, at, end)
        if tag != _CONTENT:
            kept.append(data[begin:at])
        elif content:
            raise _Uncommon
        else:
            content = memoryview(data)[start:at]
    rest = b"".join(kept)
    entry = data[head:value] + bytes([_VALUE]) + encode_varint(len(rest)) + rest
    return data[key:value].decode(), content, entry


def _field(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Where the value of the field at `at` begins and ends; its tag must be one byte."""
    tag = data[at] if at < end else 0
    kind = tag & 7
    if not 0x7F >= tag > 7 or kind not in (_VARINT, _DELIMITED):
        raise _Uncommon
    number, start = read_varint(data, at + 1)
    stop = start + number if kind == _DELIMITED else start
    if stop > end or start - at > 6:  # as long as a length may be
        raise _Uncommon
    return start, stop
