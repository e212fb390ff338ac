"""The JSON forms of bytes and of numbers that JSON does not have."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_bn_serving.wire.json_values import (
    dumps,
    from_base64,
    from_text,
    is_base64,
    numbers,
    to_base64,
    to_text,
)

FLOATS = st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, -0.0])


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=FLOATS)
)
@settings(deadline=None)
def test_float32_survives_the_text_to_the_bit(array):
    read = np.asarray(json.loads(dumps(numbers(array))), np.float32).reshape(array.shape)
    np.testing.assert_array_equal(read, array)
    known = ~np.isnan(array)
    np.testing.assert_array_equal(np.signbit(read[known]), np.signbit(array[known]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_words_and_the_fewest_digits(dtype):
    array = np.array([[np.nan, 0.1], [np.inf, -np.inf]], dtype)
    assert dumps({"x": numbers(array)}) == b'{"x":[[NaN,0.1],[Infinity,-Infinity]]}'
    assert dumps(numbers(np.array(np.nan, dtype))) == b"NaN"


def test_integers_and_booleans_are_left_alone():
    assert dumps(numbers(np.array([2**64 - 1], np.uint64))) == b"[18446744073709551615]"
    assert dumps(numbers(np.array([True]))) == b"[true]"


@given(st.binary(max_size=20))
def test_any_bytes_in_both_forms(data):
    assert from_text(to_text(data)) == data
    assert is_base64(to_base64(data))
    assert from_base64(to_base64(data)) == data
    unpadded = base64.b64encode(data).decode().rstrip("=")
    assert from_base64({"b64": f" {unpadded}\n"}) == data


def test_what_is_no_base64():
    for value in ({"b64": 1}, {"b64": "YQ==", "more": 1}, {}, "YQ==", None):
        assert not is_base64(value)
    with pytest.raises(ValueError):
        from_base64({"b64": "-_"})
