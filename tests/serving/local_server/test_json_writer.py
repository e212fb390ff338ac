"""Writing JSON: every number reads back as the same number, in TF Serving's spelling."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving.local_server import json_writer


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([np.float32, np.float64]))
def test_every_float_reads_back(data: st.DataObject, dtype: type) -> None:
    values = data.draw(arrays.arrays(dtype, 5))
    for text, value in zip(json_writer.number_texts(values), values, strict=True):
        read = dtype(json.loads(text))
        assert (math.isnan(read) and math.isnan(value)) or read == value
        assert isinstance(json.loads(text), float)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3.0"),
        (0.2, "0.2"),
        (1 / 3, "0.333333343"),
        (999999, "999999.0"),
        (1000000.0, "1e+06"),
        (3e-05, "3e-05"),
        (16777216, "16777216.0"),
        (555557.5, "555557.5"),
        (-0.0, "-0.0"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
    ],
)
def test_spelling(value: float, text: str) -> None:
    assert json_writer.number_texts(np.array([value], np.float32)) == [text]


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.int32, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
def test_layouts_keep_shape_and_values(array: np.ndarray) -> None:
    texts = json_writer.texts(array)
    assert json.loads(json_writer.inline(texts, array.shape)) == array.tolist()
    assert json.loads(json_writer.expanded(texts, array.shape, 4)) == array.tolist()


def test_strings_and_bytes() -> None:
    array = np.array([b'a"\n', b"\xff", "\N{SNOWMAN}".encode()], object)
    written = json_writer.encode(json_writer.inline(json_writer.texts(array), [3]))
    assert written == b'["a\\"\\n", "\xff", "\xe2\x98\x83"]'
    assert json.loads(json_writer.texts(array, as_base64=True)[1]) == {"b64": "/w=="}


def test_quoted_values_are_cut() -> None:
    assert (
        json_writer.quote_value({"a": [1, 2.5, None, True, "x"]})
        == '{\n    "a": [1, 2.5, null, true, "x"]\n}'
    )
    assert len(json_writer.quote_value(list(range(10_000)))) < 300
    assert json_writer.quote_value([1, math.nan, 2]) == "[1, "
    deep: list = []
    for _ in range(50_000):
        deep = [deep]
    assert json_writer.quote_value(deep).startswith("[[[[")
