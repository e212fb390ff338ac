"""Arrays as JSON: every number reads back as the same number of its type, spelled as TF Serving spells it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from keras_bn_serving.local_server import json_writer, rest_tensors
from keras_bn_serving.wire.dtypes import BY_NAME, name_of
from keras_bn_serving.wire.errors import InvalidArgumentError


def _written(array: np.ndarray, alias: str = "y") -> bytes:
    """The value of the document's one member."""
    whole = json_writer.document("k", json_writer.values(array, alias), inline=True)
    return whole.removeprefix(b'{\n    "k": ').removesuffix(b"\n}")


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


@settings(max_examples=300, deadline=None)
@given(number=st.floats(width=32), double=st.booleans())
def test_floats_are_spelled_as_c_spells_them(number: float, double: bool) -> None:
    """%g, or all digits of the type where that does not read back; `.0` after what looks like an integer."""
    (text,) = json_writer.values(np.array([number], np.float64 if double else np.float32))
    short, long = f"{number:g}", f"{number:.{17 if double else 9}g}"
    if math.isnan(number) or math.isinf(number):
        assert text == {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[short]
        return
    reads_back = float(short) == number if double else np.float32(float(short)) == np.float32(number)
    expected = short if reads_back else long
    assert text == (expected if {".", "e"} & set(expected) else f"{expected}.0")


def test_layouts() -> None:
    """As TF Serving breaks lines (see also the golden vectors with `exact_bytes`)."""
    array = np.int32([[[1, 2]], [[3, 4]]])
    texts = json_writer.values(array)
    assert json_writer.document("k", texts, inline=True) == b'{\n    "k": [[[1, 2]], [[3, 4]]]\n}'
    rows = json_writer.document("k", texts, inline=True, rows=True)
    assert rows == b'{\n    "k": [[[1, 2]], [[3, 4]]\n    ]\n}'
    spread = json_writer.document("k", json_writer.values(array[:1]))
    assert spread == (
        b'{\n    "k": [\n        [\n            [\n                1,\n                2\n            ]\n'
        b"        ]\n    ]\n}"
    )
    assert json.loads(json_writer.objects("k", [{"a": "1", "b": ["2.5", "3.5"]}])) == {
        "k": [{"a": 1, "b": [2.5, 3.5]}]
    }
    assert json_writer.document("k", [], rows=True) == b'{\n    "k": []\n}' == json_writer.objects("k", [])


def test_strings_and_bytes() -> None:
    array = np.array([b'a"\n', b"\xff", "\N{SNOWMAN}".encode()], object)
    assert _written(array) == b'["a\\"\\n", "\xff", "\xe2\x98\x83"]'
    assert json.loads(_written(array, "y_bytes"))[1] == {"b64": "/w=="}
    assert _written(array[0, ...]) == b'"a\\"\\n"'


@pytest.mark.parametrize("dtype", [np.float16, np.uint16, np.complex64])
def test_dtypes_without_a_json_form(dtype: type) -> None:
    """Where there is no value there is nothing that cannot be written, as in the original."""
    with pytest.raises(InvalidArgumentError, match="Failed to write JSON value for tensor type"):
        json_writer.values(np.zeros(1, dtype))
    assert json_writer.values(np.zeros((1, 0), dtype)) == [[]]


def test_an_error_may_quote_anything() -> None:
    assert json_writer.error("a \udcff \n") == b'{\n    "error": "a \xff \\n"\n}'
    json_writer.error("\ud800")
