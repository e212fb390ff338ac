"""The oracle itself, checked against finite differences and the paper's own statements."""

import numpy as np
import pytest

from keras_bn import reference

RNG = np.random.default_rng(0)


def _loss_gradient(loss, value, step=1e-5):
    gradient = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        high, low = value.copy(), value.copy()
        high[index] += step
        low[index] -= step
        gradient[index] = (loss(high) - loss(low)) / (2 * step)
    return gradient


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_agree_with_finite_differences(axis, masked):
    x, dy = RNG.normal(size=(2, 4, 3, 2))
    channels = x.shape[axis]
    gamma, beta = RNG.normal(size=(2, channels))
    mask = RNG.random(x.shape) < 0.7 if masked else None

    def loss(x, gamma, beta):
        return np.sum(dy * reference.train_forward(x, gamma, beta, 1e-2, axis, mask)[0])

    found = reference.train_gradients(dy, x, gamma, 1e-2, axis, mask)
    # Central differences with step h have an error of order h², 1e-10, and lose 1e-16 / h to rounding.
    np.testing.assert_allclose(found.x, _loss_gradient(lambda v: loss(v, gamma, beta), x), atol=1e-7)
    np.testing.assert_allclose(found.gamma, _loss_gradient(lambda v: loss(x, v, beta), gamma), atol=1e-7)
    np.testing.assert_allclose(found.beta, _loss_gradient(lambda v: loss(x, gamma, v), beta), atol=1e-7)


def test_normalized_values_have_the_asked_moments():
    x = RNG.normal(5, 3, size=(50, 4))
    gamma, beta = RNG.normal(size=(2, 4))
    y, _ = reference.train_forward(x, gamma, beta, 0.0)
    np.testing.assert_allclose(y.mean(0), beta, atol=1e-13)
    np.testing.assert_allclose(y.std(0), abs(gamma), rtol=1e-13)


def test_gamma_and_beta_can_restore_the_input():
    # Section 3: gamma = sqrt(Var[x]) and beta = E[x] recover the original activations.
    x = RNG.normal(size=(6, 3))
    y, _ = reference.train_forward(x, np.sqrt(x.var(0) + 1e-3), x.mean(0), 1e-3)
    np.testing.assert_allclose(y, x, atol=1e-14)


def test_mask_is_the_same_as_leaving_values_out():
    x = RNG.normal(size=(6, 3))
    keep = np.array([True, False, True, True, False, True])
    masked = reference.batch_moments(np.where(keep[:, None], x, np.nan), mask=keep[:, None])
    for found, expected in zip(masked, reference.batch_moments(x[keep]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_population_variance_is_unbiased():
    batches = RNG.normal(size=(20, 3, 2))
    mean, variance = reference.population_moments(batches)
    np.testing.assert_allclose(mean, batches.mean((0, 1)), atol=1e-14)
    np.testing.assert_allclose(variance, batches.var(1, ddof=1).mean(0), rtol=1e-13)
