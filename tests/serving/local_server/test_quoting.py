"""JSON values in error messages: RapidJSON's numbers, and what is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from keras_bn_serving.local_server import quoting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e3, "1000.0"),
        (-(2**63) - 1, "-9223372036854776000.0"),
        (2**64 - 1, "18446744073709551615"),
        (1e21, "1e21"),
        (1.5e30, "1.5e30"),
        (1e-7, "1e-7"),
        (0.001, "0.001"),
        (-0.0, "-0.0"),
        ([1, math.nan, 2], "[1, "),
        (math.nan, ""),
        (np.arange(3), "[0, 1, 2]"),
        ({"a": [1, {}], "b": "x"}, '{\n    "a": [1, {}],\n    "b": "x"\n}'),
        ([True, None, []], "[true, null, []]"),
    ],
)
def test_numbers_in_messages(value: object, text: str) -> None:
    assert quoting.quote(value) == text


def test_a_long_value_ends_after_256_bytes() -> None:
    text = quoting.quote(list(range(1000)))
    assert 256 < len(text) < 266
    assert str(list(range(1000))).startswith(text)


def test_types() -> None:
    values = [True, False, None, {}, [], np.zeros(1), "x", 1, 1.5]
    names = ["True", "False", "Null", "Object", "Array", "Array", "String", "Number", "Number"]
    assert [quoting.json_type(value) for value in values] == names
