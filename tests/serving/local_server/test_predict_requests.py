"""Reading PredictRequests, against protobuf's own parser."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2

from keras_bn_serving.local_server import predict_requests
from keras_bn_serving.wire import tensors


@pytest.fixture(autouse=True)
def cut_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor counts as large."""
    monkeypatch.setattr(predict_requests, "_LARGE", 0)


def whole(read: predict_requests.PredictRequest) -> predict_pb2.PredictRequest:
    """The message with its contents back in their places."""
    message = predict_pb2.PredictRequest.FromString(read.message.SerializeToString())
    for alias, content in read.contents.items():
        assert not message.inputs[alias].tensor_content
        message.inputs[alias].tensor_content = bytes(content)
    return message


def a_request(arrays: dict[str, np.ndarray]) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest(output_filter=["y", "z"])
    request.model_spec.name = "model"
    request.model_spec.version.value = 300
    for alias, array in arrays.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
    return request


ARRAYS = {"x": np.arange(300, dtype=np.float32), "ø": np.array([b"a", b"bc"]), "": np.float32(1)}


def test_contents_are_views_of_the_bytes() -> None:
    request = a_request(ARRAYS)
    data = request.SerializeToString()
    read = predict_requests.read(data)
    assert whole(read) == request
    assert read.contents["x"].obj is data
    array = tensors.decode(read.message.inputs["x"], content=read.contents["x"])
    np.testing.assert_array_equal(array, ARRAYS["x"])
    assert array.shape == (300,)


def test_a_short_request_is_left_to_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    request = a_request(ARRAYS)
    assert predict_requests.read(request.SerializeToString()) == (request, {})
    request = a_request({"x": np.zeros((1, 224, 224, 3), np.float32)})
    read = predict_requests.read(request.SerializeToString())
    assert whole(read) == request
    assert read.contents


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_any_bytes_mean_what_they_mean_to_protobuf(data: st.DataObject) -> None:
    """Whole requests one after another (fields that occur twice), then some bytes changed, cut or added."""
    pieces = st.sampled_from(
        [a_request({alias: array}).SerializeToString() for alias, array in ARRAYS.items()]
        + [
            a_request({"x": np.arange(3)}).SerializeToString(),
            b"",
            b"\x12\x00",
            b"\x12\x02\x0a\x00",
            b"\x28\x01",
        ]
    )
    message = bytearray(b"".join(data.draw(st.lists(pieces, max_size=3))))
    for _ in range(data.draw(st.integers(0, 3)) if message else 0):
        at = data.draw(st.integers(0, len(message) - 1))
        message[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not message:
            break
    serialized = bytes(message)
    try:
        expected = predict_pb2.PredictRequest.FromString(serialized)
    except DecodeError:
        with pytest.raises(DecodeError):
            predict_requests.read(serialized)
        return
    read = predict_requests.read(serialized)
    # As bytes: numbers that are NaN are not equal to themselves, and unknown fields count.
    got = whole(read)
    assert got.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def test_many_fields_are_left_to_protobuf() -> None:
    texts = a_request({"x": np.array([b"a"] * 1000)}).SerializeToString()
    names = a_request({f"x{number}": np.arange(2) for number in range(100)}).SerializeToString()
    for data in (texts, names):
        assert predict_requests.read(data) == (predict_pb2.PredictRequest.FromString(data), {})


def test_equal_aliases_and_contents_in_two_parts() -> None:
    first, second = a_request({"x": np.arange(5)}), a_request({"x": np.arange(7)})
    both = first.SerializeToString() + second.SerializeToString()
    assert whole(predict_requests.read(both)) == predict_pb2.PredictRequest.FromString(both)
