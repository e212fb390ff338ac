"""The layer against the float64 oracle, over every combination of what changes the arithmetic."""

import itertools

import keras
import ml_dtypes
import numpy as np
import pytest

from keras_bn import BatchNormalization, kernels, reference
from keras_bn.kernels import general

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
SHAPES = {2: (12, 5), 3: (4, 3, 5), 4: (2, 3, 4, 5), 5: (2, 3, 2, 2, 5)}
EPSILON = 1e-3


def _cases():
    for dtype, rank, last, masked, unbiased, path in itertools.product(
        DTYPES, SHAPES, (True, False), (False, True), (True, False), ("general", "native", "large")
    ):
        if rank == 2 and not last:
            continue
        if path == "large" and keras.backend.backend() != "tensorflow":
            continue  # the size decides nothing there
        if dtype == "float64" and keras.backend.backend() != "tensorflow":
            continue  # Keras's operations lower it to float32 there
        yield dtype, rank, -1 if last else 1, masked, unbiased, path


def _rounding(dtype):
    return float(ml_dtypes.finfo(DTYPES[dtype]).eps)


@pytest.mark.parametrize(("dtype", "rank", "axis", "masked", "unbiased", "path"), list(_cases()))
def test_agrees_with_the_oracle(dtype, rank, axis, masked, unbiased, path, training_step, monkeypatch):
    if path == "general":
        monkeypatch.setattr(kernels, "batch_norm", general.batch_norm)
    elif path == "large":
        monkeypatch.setattr("keras_bn.kernels.tensorflow._LARGE_SIZE", 0)
    rng = np.random.default_rng(rank)
    x = rng.normal(2.0, 3.0, SHAPES[rank]).astype(DTYPES[dtype])
    dy = rng.normal(size=x.shape).astype(DTYPES[dtype])
    mask = rng.random(x.shape) < 0.8 if masked else None
    channels = x.shape[axis]
    gamma, beta = rng.normal(size=(2, channels)).astype("float32")
    layer = BatchNormalization(axis, momentum=0.0, unbiased_variance=unbiased, epsilon=EPSILON, dtype=dtype)
    layer.build(x.shape)
    layer.set_weights([gamma, beta, np.zeros(channels), np.ones(channels)])

    step = training_step(layer, x, dy, mask)

    expected, moments = reference.train_forward(x, gamma, beta, EPSILON, axis, mask)
    gradients = reference.train_gradients(dy, x, gamma, EPSILON, axis, mask)
    # Rounding happens in the statistics' dtype, relative to the largest x / deviation, and once at the end,
    # in the layer's dtype, relative to the result.
    inner = _rounding("float64" if dtype == "float64" else "float32")
    outer = _rounding(dtype)
    deviation = np.sqrt(moments.variance.min() + EPSILON)
    size = abs(x.astype("float64")).max() / deviation * abs(gamma).max() + abs(beta).max()
    atol = 4 * inner * size
    np.testing.assert_allclose(step.y.astype("float64"), expected, atol=atol, rtol=outer)
    moving_mean, moving_variance = layer.get_weights()[2:]
    count = moments.count if unbiased else np.inf
    corrected = moments.variance / (1 - 1 / np.maximum(count, 2))
    np.testing.assert_allclose(moving_mean, moments.mean, atol=4 * inner * abs(moments.mean).max())
    np.testing.assert_allclose(moving_variance, corrected, rtol=8 * inner)
    # The gradient to x is a difference of sums, each rounded a few times; the others are sums of m terms.
    m = moments.count.max()
    slope = abs(gamma).max() / deviation * 4 * abs(dy.astype("float64")).max()
    np.testing.assert_allclose(step.dx.astype("float64"), gradients.x, atol=8 * inner * slope * 4, rtol=outer)
    np.testing.assert_allclose(step.dweights[0], gradients.gamma, atol=4 * inner * m * 4)
    np.testing.assert_allclose(step.dweights[1], gradients.beta, atol=4 * inner * m)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_a_large_mean_does_not_drown_the_variance(axis, masked):
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 1e-2, (8, 32, 32, 8)).astype("float32")
    mask = rng.random(x.shape) < 0.5 if masked else None
    layer = BatchNormalization(axis, momentum=0.0, unbiased_variance=False, epsilon=1e-12)
    y = keras.ops.convert_to_numpy(layer(x, training=True, mask=mask))
    ones = np.ones(x.shape[axis])
    expected, moments = reference.train_forward(x, ones, 0 * ones, 1e-12, axis, mask)
    # The squares are summed in single precision over thousands of values, hence not to the last bit.
    np.testing.assert_allclose(layer.get_weights()[3], moments.variance, rtol=1e-4)
    # The mean is a float32: half a unit in its last place is 5% of this standard deviation.
    np.testing.assert_allclose(y, expected, atol=0.06)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("axis", [-1, 1])
def test_a_bad_value_stays_in_its_channel(bad, axis):
    x = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype("float32")
    spoilt = x.copy()
    spoilt[0, 1, 1, 1] = bad
    clean, other = BatchNormalization(axis), BatchNormalization(axis)
    y, z = (
        np.delete(keras.ops.convert_to_numpy(layer(value, training=True)), 1, axis)
        for layer, value in ((clean, x), (other, spoilt))
    )
    np.testing.assert_allclose(z, y, atol=1e-6)  # the two may be summed by different kernels
    for found, expected in zip(other.get_weights(), clean.get_weights(), strict=True):
        np.testing.assert_allclose(np.delete(found, 1), np.delete(expected, 1), rtol=1e-5)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
def test_a_constant_channel_becomes_beta(axis, value):
    x = np.full((4, 3, 3, 3), value, "float32")
    layer = BatchNormalization(axis, momentum=0.0, beta_initializer="ones")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x, training=True)), np.ones_like(x))
    np.testing.assert_array_equal(layer.get_weights()[3], np.zeros(3))


@pytest.mark.parametrize("epsilon", [1e-30, 1e30])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
def test_a_constant_channel_gives_no_nan_with_any_epsilon(epsilon, masked, value, training_step):
    x = np.full((4, 7, 3), value, "float32")
    dy = np.random.default_rng(0).normal(size=x.shape).astype("float32")
    gamma = keras.initializers.Constant(9.0)
    layer = BatchNormalization(epsilon=epsilon, momentum=0.0, gamma_initializer=gamma)
    step = training_step(layer, x, dy, np.ones(x.shape, bool) if masked else None)
    for found in (step.y, step.dx, *step.dweights, *layer.get_weights(), layer(x)):
        assert np.isfinite(keras.ops.convert_to_numpy(found)).all()
