"""Arrays as JSON and back: every number reads back as the same number of its type."""

from __future__ import annotations

import json
import math

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tensorflow.core.framework import types_pb2

from keras_bn_serving.local_server import rest_tensors
from keras_bn_serving.wire.dtypes import BY_NAME, name_of
from keras_bn_serving.wire.errors import InvalidArgumentError, ServingError, UnimplementedError


def _written(array: np.ndarray, alias: str = "y") -> bytes:
    return orjson.dumps(rest_tensors.to_json(array, alias), option=orjson.OPT_SERIALIZE_NUMPY)


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from([np.float32, np.float64]),
    shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
def test_every_float_reads_back(data: st.DataObject, dtype: type, shape: tuple[int, ...]) -> None:
    array = data.draw(arrays.arrays(dtype, shape))
    read = json.loads(_written(array))
    np.testing.assert_array_equal(np.array(read, dtype).reshape(shape), array)
    assert all(isinstance(number, float) for number in np.array(read, object).flat)


@settings(max_examples=100, deadline=None)
@given(
    array=arrays.arrays(
        st.sampled_from([np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint32, np.uint64, np.bool_]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4),
    )
)
def test_integers_and_bools_make_the_way_there_and_back(array: np.ndarray) -> None:
    read = json.loads(_written(array))
    assert read == array.tolist()
    again = rest_tensors.to_array(read, BY_NAME[name_of(array.dtype)].number)
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


def test_floats_are_written_with_few_digits_and_nan_as_tf_serving_does() -> None:
    array = np.float32([3, 0.2, math.nan, math.inf, -math.inf])
    assert _written(array[:2]) == b"[3.0,0.2]"
    assert json.loads(_written(array), parse_constant=str, parse_float=str) == [
        "3.0",
        "0.2",
        "NaN",
        "Infinity",
        "-Infinity",
    ]


def test_strings_and_bytes() -> None:
    array = np.array([b'a"\n', b"\xff", "\N{SNOWMAN}".encode()], object)
    assert _written(array) == b'["a\\"\\n", "\xff", "\xe2\x98\x83"]'
    assert json.loads(_written(array, "y_bytes"))[1] == {"b64": "/w=="}
    assert _written(array[0, ...]) == b'"a\\"\\n"'


@pytest.mark.parametrize("dtype", [np.float16, np.uint16, np.complex64])
def test_dtypes_without_a_json_form(dtype: type) -> None:
    with pytest.raises(InvalidArgumentError, match="Failed to write JSON value for tensor type"):
        rest_tensors.to_json(np.zeros(1, dtype))
    with pytest.raises(UnimplementedError, match="Conversion of JSON Value: 1"):
        rest_tensors.to_array([1], BY_NAME[name_of(np.dtype(dtype))].number)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("aGVsbG8=", b"hello"),
        ("aGVsbG8", b"hello"),
        ("aGVs\nbG8=", b"hello"),
        ("", b""),
        ("//79", b"\xff\xfe\xfd"),
    ],
)
def test_base64(text: str, value: bytes) -> None:
    assert rest_tensors.to_bytes({"b64": text}) == value


@pytest.mark.parametrize("text", ["!!", "__79", "a", "aGVsbG8=="])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(ServingError, match="Unable to base64 decode"):
        rest_tensors.to_bytes({"b64": text})


@pytest.mark.parametrize("value", [[[1], 2], [1, [2]], [[1, 2], [3]], [[[1]], [2]], [[1], [[2]]]])
def test_ragged_values_are_refused(value: list) -> None:
    with pytest.raises(InvalidArgumentError):
        rest_tensors.to_array(value, types_pb2.DT_FLOAT)


def test_big_arrays_of_different_shapes_are_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        rest_tensors.to_array([np.zeros(2000), np.zeros(2001)], types_pb2.DT_FLOAT)
    assert rest_tensors.to_array([np.zeros(2), np.ones(2)], types_pb2.DT_FLOAT).shape == (2, 2)
