"""What users pass becomes what the signature wants, or one sentence that says what it wants."""

import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_bn_serving.client.features import feature_values
from keras_bn_serving.client.inputs import prepare
from keras_bn_serving.client.metadata import Signature, TensorSpec
from keras_bn_serving.wire.errors import InvalidArgumentError


def one(dtype, shape=(None,)):
    return Signature({"x": TensorSpec(dtype, shape)}, {})


def prepared(value, dtype, shape=(None,)):
    return prepare(value, one(dtype, shape))["x"]


def refused(match, x, signature):
    with pytest.raises(InvalidArgumentError, match=match) as caught:
        prepare(x, signature)
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [
        ([1, 2], "DT_FLOAT", np.float32([1, 2])),
        ([1.5, 2], "DT_DOUBLE", np.float64([1.5, 2])),
        (np.float64([0.1]), "DT_FLOAT", np.float32([0.1])),
        (np.array([0.5], ">f4"), "DT_FLOAT", np.float32([0.5])),
        (np.uint8([255]), "DT_FLOAT", np.float32([255])),
        ([0.5], "DT_HALF", np.float16([0.5])),
        ([0.5], "DT_BFLOAT16", np.array([0.5], ml_dtypes.bfloat16)),
        ([0, 255], "DT_UINT8", np.uint8([0, 255])),
        ([-1], "DT_INT64", np.int64([-1])),
        ([2**64 - 1], "DT_UINT64", np.uint64([2**64 - 1])),
        ([True], "DT_BOOL", np.array([True])),
        ([1, 1j], "DT_COMPLEX64", np.complex64([1, 1j])),
        ([], "DT_INT32", np.int32([])),
    ],
)
def test_numbers_take_the_dtype_of_the_signature(value, dtype, wanted):
    array = prepared(value, dtype)
    assert array.dtype == wanted.dtype
    np.testing.assert_array_equal(array, wanted)


def test_an_array_that_fits_is_not_copied():
    array = np.zeros((2, 3), np.float32)
    assert prepared(array, "DT_FLOAT", (None, 3)) is array


@pytest.mark.parametrize(
    ("value", "dtype", "match"),
    [
        ([1.0], "DT_INT32", "values of type float64 were given"),
        ([300], "DT_UINT8", "values from 300 to 300 were given, and it holds 0 to 255"),
        ([-1], "DT_UINT64", "values from -1 to -1"),
        ([1], "DT_BOOL", "values of type int64"),
        ([1j], "DT_FLOAT", "values of type complex128"),
        (["a"], "DT_FLOAT", "values of type"),
        ([None], "DT_FLOAT", "values of type object"),
        ([[1], [2, 3]], "DT_FLOAT", "inhomogeneous"),
        ([b"a", 1], "DT_STRING", "int was given, where str, bytes or pathlib.Path"),
        ([["a"], ["b", "c"]], "DT_STRING", "list was given"),
    ],
)
def test_values_that_do_not_fit_name_the_input_and_what_it_wants(value, dtype, match):
    refused(rf"^input 'x' should be .*: .*{match}", value, one(dtype, (None,)))


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4))
def test_an_integer_is_kept_or_refused_never_wrapped(values):
    try:
        array = prepared(values, "DT_INT16")
    except InvalidArgumentError:
        assert any(not -(2**15) <= value < 2**15 for value in values)
    else:
        assert array.tolist() == values


def test_strings_are_utf8_bytes_and_the_contents_of_files(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\x00")
    value = [["ø", b"\x00"], [path, np.bytes_(b"n")]]
    assert prepared(value, "DT_STRING", (None, 2)).tolist() == [
        ["ø".encode(), b"\x00"],
        [b"\x89PNG\x00", b"n"],
    ]
    assert prepared(np.array(["ab", "c"]), "DT_STRING").tolist() == [b"ab", b"c"]
    assert prepared(path, "DT_STRING", ()).tolist() == b"\x89PNG\x00"
    refused(
        f"{re.escape(str(tmp_path))}.none cannot be read .No such file", [tmp_path / "none"], one("DT_STRING")
    )


def test_shapes():
    prepared(np.zeros((5, 2)), "DT_FLOAT", (None, 2))
    prepared(np.zeros((5, 2)), "DT_FLOAT", None)
    prepared(3, "DT_FLOAT", ())
    signature = one("DT_FLOAT", (None, 8, 8, 1))
    wants = r"input 'x' should be float32 \(None, 8, 8, 1\), and its shape is"
    refused(wants + r" \(8, 8, 1\); for a batch of one add the batch axis", np.zeros((8, 8, 1)), signature)
    refused(wants + r" \(1, 8, 8, 3\)$", np.zeros((1, 8, 8, 3)), signature)
    refused(wants + r" \(\)$", 1.0, signature)


def test_names():
    specs = {"a": TensorSpec("DT_FLOAT", (None,)), "b": TensorSpec("DT_STRING", None)}
    signature = Signature(specs, {})
    assert set(prepare({"b": ["s"], "a": [1]}, signature)) == {"a", "b"}
    wants = r"the signature wants a: float32 \(None,\), b: string of any shape"
    refused(f"pass a dict of inputs by name: {wants}", [1.0], signature)
    refused(rf"wrong input names \(missing 'b'; unknown 'c'\): {wants}", {"a": [1], "c": [2]}, signature)
    optional = Signature({**specs, "b": TensorSpec("DT_STRING", None, has_default=True)}, {})
    assert set(prepare({"a": [1]}, optional)) == {"a"}
    assert prepare({}, Signature({}, {})) == {}


def test_features_are_typed_by_how_they_are_written(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"\xff")
    for value, wanted in [
        (2, np.int64([2])),
        ([2.0, 3], np.float32([2, 3])),
        ([True, False], np.int64([1, 0])),
        ("a", np.array([b"a"], object)),
        (b"a\x00", np.array([b"a\x00"], object)),
        ([b"a\x00", "ø"], np.array([b"a\x00", "ø".encode()], object)),
        (path, np.array([b"\xff"], object)),
    ]:
        values = feature_values("f", value)
        assert values.dtype == wanted.dtype
        assert values.tolist() == wanted.tolist()
    for value in (None, ["a", 1], {"b": 1}):
        with pytest.raises(InvalidArgumentError, match="feature 'f' should hold int, float, str or bytes"):
            feature_values("f", value)
