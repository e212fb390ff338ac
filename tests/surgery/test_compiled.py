"""Compiled functions give what the functions give."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bn.statistics.population import merged_row_moments, row_moments
from keras_bn.surgery._compiled import fuses, in_one_kernel, size_of


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a graph of TensorFlow")
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_kernel_computes_the_same_whatever_the_size_of_the_batch(axis, dtype, caplog):
    tf = pytest.importorskip("tensorflow")
    values = np.random.default_rng(0).normal(5, 2, (6, 4, 5, 3)).astype(dtype)

    @tf.function(input_signature=[tf.TensorSpec((None, *values.shape[1:]), dtype)])
    def run(x):
        assert fuses()
        return in_one_kernel(row_moments, x, axis), in_one_kernel(merged_row_moments, x, axis)

    for size in (6, 5, 4, 3, 2, 1):
        batch = ops.convert_to_tensor(values[:size])
        plain = row_moments(batch, axis), merged_row_moments(batch, axis)
        for found, expected in zip(keras.tree.flatten(run(batch)), keras.tree.flatten(plain), strict=True):
            # A few float32 roundings, added up in another order.
            np.testing.assert_allclose(*map(ops.convert_to_numpy, (found, expected)), rtol=2e-6)
    assert "retracing" not in caplog.text


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 4), ("bfloat16", 2), ("float64", 8), ("int8", 1), ("bool", 1), ("float8_e4m3fn", 1)],
)
def test_sizes_of_dtypes(dtype, size):
    assert size_of(dtype) == size
