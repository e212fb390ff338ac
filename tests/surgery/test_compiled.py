"""Sizes of dtypes."""

import pytest

from keras_bn.surgery._compiled import size_of


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 4), ("bfloat16", 2), ("float64", 8), ("int8", 1), ("bool", 1), ("float8_e4m3fn", 1)],
)
def test_sizes_of_dtypes(dtype, size):
    assert size_of(dtype) == size
