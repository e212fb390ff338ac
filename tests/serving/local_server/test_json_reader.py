"""Reading JSON: Python's `json` is the oracle for documents that both accept."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from keras_bn_serving.local_server import json_reader
from keras_bn_serving.wire.errors import InvalidArgumentError, ServingError

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(value=_VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_it_agrees_with_json(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert json_reader.parse(text) == value


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text('[]{},:"\\01e.-aNnulItrf ', max_size=60).map(str.encode))
def test_any_bytes_give_a_value_or_a_parse_error(body: bytes) -> None:
    try:
        json_reader.parse(body)
    except ServingError as error:
        assert error.status.startswith("INVALID_ARGUMENT: JSON Parse error: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a": 1, "a": 2}', {"a": 1}),
        (b'{"a": 1} garbage', {"a": 1}),
        (b"\xef\xbb\xbf[1]", [1]),
        (b"[Infinity, -Infinity]", [math.inf, -math.inf]),
        (b'["\xff"]', ["\udcff"]),
        (b'["\\ud83d\\ude00"]', ["\U0001f600"]),
        (b"[1e308, 1E-400]", [1e308, 0.0]),
    ],
)
def test_what_the_real_server_accepts(text: bytes, value: Any) -> None:
    assert json_reader.parse(text) == value


def test_nan() -> None:
    assert math.isnan(json_reader.parse(b"[NaN]")[0])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"{'a': 1}",
        b"[01]",
        b"[1e999]",
        b"[Nan]",
        b"[+1]",
        b"[1.]",
        b"[1e]",
        b"[.5]",
        b'["a\nb"]',
        b'["\\x"]',
        b'{"a" 1}',
        b"[1 2]",
        b"[1] x"[:2],
        b'["abc',
    ],
)
def test_what_the_real_server_refuses(text: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="JSON Parse error"):
        json_reader.parse(text)


def test_what_is_nested_too_deep_is_refused_at_once() -> None:
    for one in (b"[", b'{"a":'):
        with pytest.raises(InvalidArgumentError, match="JSON Parse error"):
            json_reader.parse(one * 500_000)


@settings(max_examples=25, deadline=None)
@given(
    array=st.one_of(
        arrays.arrays(
            np.float64,
            arrays.array_shapes(max_dims=4, max_side=40).filter(lambda s: np.prod(s) > 2000),
            elements=st.floats(-1e3, 1e3),
            fill=st.just(0.125),
        ),
        arrays.arrays(np.int64, st.just((50, 20, 3)), fill=st.just(7)),
    ),
    indent=st.sampled_from([None, 1]),
)
def test_a_big_array_is_lifted_whole(array: np.ndarray, indent: int | None) -> None:
    document = {"signature_name": "s", "inputs": {"image": array.tolist(), "k": [1]}}
    parsed = json_reader.parse(json.dumps(document, indent=indent).encode())
    numbers = parsed["inputs"].pop("image")
    assert isinstance(numbers, np.ndarray)
    assert numbers.dtype == array.dtype
    np.testing.assert_array_equal(numbers, array)
    assert parsed == {"signature_name": "s", "inputs": {"k": [1]}}


def test_arrays_are_lifted_wherever_they_stand() -> None:
    image = np.arange(3000.0).reshape(30, 100) / 7
    for document, where in (
        ({"instances": image.tolist()}, lambda value: [value["instances"]]),
        ({"instances": [image.tolist(), image.tolist()]}, lambda value: [value["instances"]]),
        (
            {"instances": [{"a": image.tolist()}, {"a": image.tolist()}]},
            lambda value: [i["a"] for i in value["instances"]],
        ),
    ):
        for numbers in where(json_reader.parse(json.dumps(document).encode())):
            assert isinstance(numbers, np.ndarray)
            np.testing.assert_array_equal(numbers.reshape(-1, 100)[:30], image)


def _but(old: bytes, new: bytes) -> bytes:
    return json.dumps({"inputs": np.arange(3000).reshape(30, 100).tolist()}).encode().replace(old, new, 1)


@pytest.mark.parametrize(
    "text",
    [
        _but(b"2999]", b"2999, 3]"),
        _but(b"5,", b"NaN,"),
        _but(b"5,", b"[5],"),
        _but(b"5,", b"99999999999999999999999,"),
    ],
    ids=["ragged", "nan", "nested", "big"],
)
def test_what_is_no_rectangle_of_plain_numbers_is_left_to_json(text: bytes) -> None:
    value = json_reader.parse(text)
    assert not isinstance(value["inputs"], np.ndarray)
    assert repr(value) == repr(json.loads(text))


_NUMBERS = st.integers(-9, 300) | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False)
_PADDED = {"pad": [0.5] * 2000, "key [": "]" * 9}  # long enough for the reader of big documents


@settings(max_examples=100, deadline=None)
@given(value=st.recursive(_VALUES | st.lists(_NUMBERS, max_size=600), st.lists, max_leaves=6))
def test_a_big_document_agrees_with_json(value: Any) -> None:
    """Whatever stands before and after big arrays, which are found by their place among the brackets."""
    document = [_PADDED, value, [[1.5, 2] * 150] * 3, value, _PADDED]
    assert _as_lists(json_reader.parse(json.dumps(document, ensure_ascii=False).encode())) == document


def _as_lists(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1, "a": 2}', {"a": 1}),
        (r'{"a": 1, "a\u0000b": 2}', {"a": 1, "a\0b": 2}),
        (r'"\" [ \\"', '" [ \\'),
        ('["Inf", -Inf]', ["Inf", -math.inf]),
        ("[18446744073709551615, 18446744073709551616]", [2**64 - 1, 2**64]),
        (json.dumps({f"k{i}": [i] for i in range(500)}), {f"k{i}": [i] for i in range(500)}),
    ],
    ids=["equal keys", "NUL in a key", "escapes", "words", "big integers", "many keys"],
)
def test_big_documents_are_read_by_the_same_rules(text: str, value: Any) -> None:
    numbers = [[0.25] * 600] * 4
    read = json_reader.parse(f"[{text}, {json.dumps(numbers)}] x".encode())
    assert _as_lists(read) == [value, numbers]
    read = json_reader.parse(f"[{text}, {json.dumps(numbers)}]".encode())
    assert _as_lists(read) == [value, numbers]


def test_one_integer_beyond_int64_leaves_all_rows_to_json() -> None:
    """Else some rows of a tensor would be lists and others arrays."""
    rows = [[2**63 + 1] * 300, [1] * 300]
    assert json_reader.parse(json.dumps(rows).encode()) == rows


@pytest.mark.parametrize("new", [b"5,,", b"1e999,", b"05,"])
def test_big_arrays_that_are_no_json_are_refused(new: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="JSON Parse error"):
        json_reader.parse(_but(b"5,", new))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Inf", math.inf),
        ("-Inf", -math.inf),
        ("Infinity", math.inf),
        ("-Infinity", -math.inf),
        ("-NaN", math.nan),
    ],
)
def test_words_for_numbers(text: str, value: float) -> None:
    body = f'{{"Inf": "-NaN \\" Inf", "x": [{text}, 1, {text}], "y": {text}}}'.encode()
    read = json_reader.parse(body)
    assert read["Inf"] == '-NaN " Inf', "within strings they are text"
    np.testing.assert_array_equal(read["x"], [value, 1, value])
    np.testing.assert_array_equal(read["y"], value)


@pytest.mark.parametrize(
    "text", ["Nan", "inf", "INF", "Infi", "-Infinit", "+Inf", "--Inf", "Infx", "1Inf", "-nan"]
)
def test_other_words_are_errors(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        json_reader.parse(f'{{"x": [{text}]}}'.encode())
