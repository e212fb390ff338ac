"""TensorProto and arrays: TensorFlow's own functions are the oracle wherever they accept what is given."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tensorflow.core.framework import tensor_pb2

from keras_bn_serving.local_server import tensors

_DTYPES = [
    *("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bool", "float16", "complex64", "complex128"),
]


def _same(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.tobytes() == want.tobytes() if got.dtype != object else got.tolist() == want.tolist()


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(_DTYPES),
    shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    packed=st.booleans(),
)
def test_numbers_round_trip_to_the_bit(
    data: st.DataObject, dtype: str, shape: tuple[int, ...], packed: bool
) -> None:
    array = data.draw(arrays.arrays(dtype, shape))
    proto = tensor_pb2.TensorProto()
    tensors.to_proto(array, proto, packed)
    _same(tensors.to_array(proto), array)
    _same(tf.make_ndarray(proto), array)


@settings(max_examples=50, deadline=None)
@given(strings=st.lists(st.binary(max_size=300), max_size=5), packed=st.booleans())
def test_strings_round_trip(strings: list[bytes], packed: bool) -> None:
    array = np.array(strings, object)
    proto = tensor_pb2.TensorProto()
    tensors.to_proto(array, proto, packed)
    assert tensors.to_array(proto).tolist() == strings


def test_bfloat16_round_trips() -> None:
    array = np.array([1.5, -2.0, np.inf], ml_dtypes.bfloat16)
    proto = tensor_pb2.TensorProto()
    tensors.to_proto(array, proto)
    _same(tensors.to_array(proto), array)


def test_a_few_bytes_cannot_stand_for_gigabytes() -> None:
    proto = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1.0])
    proto.tensor_shape.dim.add(size=2**24 + 1)
    with pytest.raises(ValueError):
        tensors.to_array(proto)
    proto.tensor_shape.dim[0].size = 2**20
    assert tensors.to_array(proto).sum() == 2**20
    proto.tensor_shape.dim[0].size = 0
    proto.tensor_shape.dim.add(size=2**62)
    with pytest.raises(ValueError):
        tensors.to_array(proto)


def test_the_last_value_is_repeated_and_excess_is_ignored() -> None:
    proto = tf.make_tensor_proto([1.0, 2.0])
    proto.tensor_content = b""
    proto.float_val.extend([1.0, 2.0])
    proto.tensor_shape.dim[0].size = 4
    assert tensors.to_array(proto).tolist() == [1, 2, 2, 2]
    proto.tensor_shape.dim[0].size = 1
    assert tensors.to_array(proto).tolist() == [1]
    del proto.float_val[:]
    assert tensors.to_array(proto).tolist() == [0]


def test_int_val_wraps_into_narrow_types() -> None:
    proto = tf.make_tensor_proto(np.uint8([0, 0]))
    proto.tensor_content = b""
    proto.int_val.extend([300, -1])
    assert tensors.to_array(proto).tolist() == [44, 255]


def test_packed_numbers_are_not_copied() -> None:
    proto = tf.make_tensor_proto(np.arange(100.0))
    assert not tensors.to_array(proto).flags.owndata


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
def test_what_is_no_tensor_is_refused(text: str) -> None:
    from google.protobuf import text_format

    with pytest.raises(ValueError):
        tensors.to_array(text_format.Parse(text, tensor_pb2.TensorProto()))
