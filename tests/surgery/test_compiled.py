"""Compiled functions give what the functions give."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bn.statistics.population import row_moments
from keras_bn.surgery._compiled import in_one_kernel, size_of


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_kernel_computes_the_same_whatever_the_size_of_the_batch(axis, dtype, caplog):
    values = np.random.default_rng(0).normal(5, 2, (6, 4, 5, 3)).astype(dtype)
    run = lambda x: tuple(in_one_kernel(row_moments, x, axis))  # noqa: E731
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        run = tf.function(run, [tf.TensorSpec((None, *values.shape[1:]), dtype)], autograph=False)
    for size in (6, 5, 4, 3, 2, 1):
        batch = ops.convert_to_tensor(values[:size])
        for found, expected in zip(run(batch), row_moments(batch, axis), strict=True):
            # A few float32 roundings, added up in another order.
            np.testing.assert_allclose(*map(ops.convert_to_numpy, (found, expected)), rtol=2e-6)
    assert "retracing" not in caplog.text


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float32", 4), ("bfloat16", 2), ("float64", 8), ("int8", 1), ("bool", 1), ("float8_e4m3fn", 1)],
)
def test_sizes_of_dtypes(dtype, size):
    assert size_of(dtype) == size
