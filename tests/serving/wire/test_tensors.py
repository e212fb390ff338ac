"""TensorProto in both directions, against TensorFlow's own reading and writing of it."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import predict_pb2

from keras_bn_serving.wire import tensors
from keras_bn_serving.wire.dtypes import BY_NAME, numpy_dtype
from keras_bn_serving.wire.errors import UnimplementedError
from keras_bn_serving.wire.messages import MESSAGES

DTYPES = sorted(set(BY_NAME) - {"DT_STRING"})
NUMPY_DTYPES = [
    *("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bool", "float16", "complex64", "complex128"),
]
STRINGS = np.array([[b"", b"\x00\xff"], ["ø".encode(), b"x" * 300]], object)


def example(name: str) -> np.ndarray:
    dtype = numpy_dtype(name)
    values = np.array([0, 1, 2, 3, 100, 127], np.int64).reshape(2, 3)
    if dtype.kind in "iu":
        values[0, :2] = np.iinfo(dtype).min, min(np.iinfo(dtype).max, 2**63 - 1)
    array = values.astype(dtype)
    if dtype.kind in "fcV":
        array[0, 0], array[1, 1] = np.nan, -np.inf
    return array


def request_of(inputs: dict[str, np.ndarray], dtypes: dict[str, str]) -> predict_pb2.PredictRequest:
    return predict_pb2.PredictRequest.FromString(b"".join(tensors.encode_inputs(inputs, dtypes)))


def decode(proto: tensor_pb2.TensorProto) -> np.ndarray:
    return tensors.decode(MESSAGES["TensorProto"].FromString(proto.SerializeToString()), strict=True)


@pytest.mark.parametrize("name", DTYPES)
def test_tensorflow_reads_what_we_encode(name):
    array = example(name)
    request = request_of({"a": array, "b": array.T}, {"a": name, "b": name})
    for key, wanted in (("a", array), ("b", array.T)):  # the transpose is not contiguous
        read = tf.make_ndarray(request.inputs[key])
        assert read.dtype == wanted.dtype
        assert read.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("content", [False, True], ids=["typed", "tensor_content"])
@pytest.mark.parametrize("name", DTYPES)
def test_we_read_what_tensorflow_encodes_either_way(name, content):
    array = example(name)
    proto = tf.make_tensor_proto(array) if content else typed(array)
    read = decode(proto)
    assert read.dtype == array.dtype
    assert read.tobytes() == array.tobytes()


def typed(array: np.ndarray) -> tensor_pb2.TensorProto:
    """The typed form, which make_tensor_proto uses for scalars: one scalar's field after another."""
    whole = tf.make_tensor_proto(array)
    proto = tensor_pb2.TensorProto(dtype=whole.dtype, tensor_shape=whole.tensor_shape)
    for value in array.ravel():
        scalar = tf.make_tensor_proto(value, dtype=array.dtype)
        scalar.ClearField("dtype")
        scalar.ClearField("tensor_shape")
        proto.MergeFrom(scalar)
    return proto


def test_strings_of_both_encodings():
    request = request_of({"s": STRINGS}, {"s": "DT_STRING"})
    np.testing.assert_array_equal(tf.make_ndarray(request.inputs["s"]), STRINGS)
    np.testing.assert_array_equal(decode(tf.make_tensor_proto(STRINGS)), STRINGS)
    flat = STRINGS.ravel().tolist()
    proto = tf.make_tensor_proto(STRINGS)
    proto.ClearField("string_val")
    # All lengths as varints (300 = 0xac 0x02), then all bytes.
    proto.tensor_content = bytes([0, 2, 2, 0xAC, 0x02]) + b"".join(flat)
    np.testing.assert_array_equal(decode(proto), STRINGS)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)),
    st.text(max_size=200),
)
@settings(max_examples=50, deadline=None)
def test_any_shape_and_any_name(array, name):
    request = request_of({name: array}, {name: "DT_FLOAT"})
    read = tf.make_ndarray(request.inputs[name])
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()
    assert decode(tf.make_tensor_proto(array)).tobytes() == array.tobytes()


def test_a_large_array_is_copied_once():
    """The pieces that are joined hold the caller's own memory, so the join is the only copy."""
    array = np.zeros((2, 224, 224, 3), np.float32)
    pieces = list(tensors.encode_inputs({"x": array}, {"x": "DT_FLOAT"}))
    assert any(
        isinstance(piece, memoryview) and np.shares_memory(np.asarray(piece), array) for piece in pieces
    )


def test_too_few_values_repeat_the_last_and_none_are_zeros():
    shape = tf.TensorShape([2, 3]).as_proto()
    proto = tensor_pb2.TensorProto(dtype=1, tensor_shape=shape, float_val=[1.0, 7.0])
    np.testing.assert_array_equal(decode(proto), np.float32([[1, 7, 7], [7, 7, 7]]))
    assert not decode(tensor_pb2.TensorProto(dtype=3, tensor_shape=shape)).any()
    proto = tensor_pb2.TensorProto(dtype=7, tensor_shape=shape, string_val=[b"a", b"b"])
    assert decode(proto).ravel().tolist() == [b"a"] + [b"b"] * 5


def test_what_cannot_be_read_is_refused():
    too_many = tensor_pb2.TensorProto(dtype=1, tensor_shape=tf.TensorShape([1]).as_proto(), float_val=[1, 2])
    with pytest.raises(ValueError, match="2 values were sent for a DT_FLOAT tensor of 1 elements"):
        decode(too_many)
    with pytest.raises(UnimplementedError, match="no NumPy dtype"):
        decode(tensor_pb2.TensorProto(dtype=20))  # DT_RESOURCE


# As the server writes and reads them.


def same(got, want):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.tobytes() == want.tobytes() if got.dtype != object else got.tolist() == want.tolist()


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(NUMPY_DTYPES),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    packed=st.booleans(),
)
def test_numbers_round_trip_to_the_bit(data, dtype, shape, packed):
    array = data.draw(hnp.arrays(dtype, shape))
    proto = tensor_pb2.TensorProto()
    tensors.write(array, proto, packed)
    same(tensors.decode(proto), array)
    same(tf.make_ndarray(proto), array)


@settings(max_examples=50, deadline=None)
@given(strings=st.lists(st.binary(max_size=300), max_size=5), packed=st.booleans())
def test_strings_round_trip(strings, packed):
    array = np.array(strings, object)
    proto = tensor_pb2.TensorProto()
    tensors.write(array, proto, packed)
    assert tensors.decode(proto).tolist() == strings


def test_bfloat16_round_trips():
    array = np.array([1.5, -2.0, np.inf], ml_dtypes.bfloat16)
    proto = tensor_pb2.TensorProto()
    tensors.write(array, proto)
    same(tensors.decode(proto), array)


def test_a_few_bytes_cannot_stand_for_gigabytes():
    proto = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1.0])
    proto.tensor_shape.dim.add(size=2**24 + 1)
    with pytest.raises(ValueError):
        tensors.decode(proto)
    proto.tensor_shape.dim[0].size = 2**20
    assert tensors.decode(proto).sum() == 2**20
    proto.tensor_shape.dim[0].size = 0
    proto.tensor_shape.dim.add(size=2**62)
    with pytest.raises(ValueError):
        tensors.decode(proto)


def test_the_last_value_is_repeated_and_excess_is_ignored():
    proto = tf.make_tensor_proto([1.0, 2.0])
    proto.tensor_content = b""
    proto.float_val.extend([1.0, 2.0])
    proto.tensor_shape.dim[0].size = 4
    assert tensors.decode(proto).tolist() == [1, 2, 2, 2]
    proto.tensor_shape.dim[0].size = 1
    assert tensors.decode(proto).tolist() == [1]
    del proto.float_val[:]
    assert tensors.decode(proto).tolist() == [0]


def test_int_val_wraps_into_narrow_types():
    proto = tf.make_tensor_proto(np.uint8([0, 0]))
    proto.tensor_content = b""
    proto.int_val.extend([300, -1])
    assert tensors.decode(proto).tolist() == [44, 255]


def test_half_val_keeps_16_bits():
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_HALF, half_val=[0x13C00])
    assert tensors.decode(proto) == decode(proto) == 1.0


def test_packed_numbers_are_not_copied():
    proto = tf.make_tensor_proto(np.arange(100.0))
    assert not tensors.decode(proto).flags.owndata


@pytest.mark.parametrize(
    "text",
    [
        "dtype: DT_INVALID",
        "dtype: DT_FLOAT_REF",
        "dtype: DT_RESOURCE",
        "dtype: DT_FLOAT tensor_shape { dim { size: -1 } }",
        "dtype: DT_FLOAT tensor_shape { dim { size: 4294967296 } dim { size: 4294967296 } }",
        "dtype: DT_FLOAT tensor_shape { dim { size: 2 } } tensor_content: 'abc'",
        "dtype: DT_STRING tensor_shape { dim { size: 2 } } tensor_content: '\\001'",
        "dtype: DT_STRING tensor_shape { dim { size: 1 } } tensor_content: '\\005ab'",
        "dtype: DT_FLOAT tensor_shape {" + "dim { size: 1 }" * 300 + "}",
        "dtype: DT_FLOAT tensor_shape { dim { size: 1152921504606846976 } }",
        "dtype: DT_STRING tensor_shape { dim { size: 1073741824 } } tensor_content: 'abcde'",
    ],
)
def test_what_is_no_tensor_is_refused(text):
    with pytest.raises((ValueError, UnimplementedError)):
        tensors.decode(text_format.Parse(text, tensor_pb2.TensorProto()))
