"""Moving averages: the two weights of a batch, the correction of its variance, and batches without values."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bn.statistics import running
from keras_bn.statistics.moments import Moments


def _variables(batches_seen=None):
    mean, variance = keras.Variable([1.0, 1.0]), keras.Variable([4.0, 4.0])
    if batches_seen is not None:
        batches_seen = keras.Variable([batches_seen] * 2, dtype="int32", trainable=False)
    return mean, variance, batches_seen


def _moments(count):
    return Moments(ops.convert_to_tensor(count, "float32"), ops.full((2,), 3.0), ops.full((2,), 8.0))


@pytest.mark.parametrize(
    ("momentum", "seen", "weight"), [(0.75, None, 0.25), (0.0, None, 1.0), (None, 0, 1.0), (None, 3, 0.25)]
)
def test_weight_of_a_batch(momentum, seen, weight):
    mean, variance, seen = _variables(seen)
    running.update(mean, variance, _moments(5), momentum, seen, unbiased_variance=True)
    np.testing.assert_allclose(mean.numpy(), 1 + 2 * weight)
    np.testing.assert_allclose(variance.numpy(), 4 + (10 - 4) * weight)


@pytest.mark.parametrize(("count", "factor"), [(1, 1), (2, 2), (5, 1.25)])
def test_correction_of_the_variance(count, factor):
    assert float(running.unbiased(ops.ones(()), ops.convert_to_tensor(count, "float32"))) == factor


def test_only_channels_with_values_move():
    mean, variance, _ = _variables()
    nothing = ops.convert_to_tensor([float("nan"), 3.0])
    moments = Moments(ops.convert_to_tensor([0.0, 5.0]), nothing, nothing)
    running.update(mean, variance, moments, 0.0, None, unbiased_variance=False)
    np.testing.assert_array_equal(mean.numpy(), [1, 3])
    np.testing.assert_array_equal(variance.numpy(), [4, 3])


def test_a_batch_without_values_is_not_counted():
    mean, variance, seen = _variables(2)
    running.update(mean, variance, _moments(0), None, seen, unbiased_variance=True)
    np.testing.assert_array_equal(seen.numpy(), [2, 2])
    np.testing.assert_array_equal(mean.numpy(), [1, 1])
    np.testing.assert_array_equal(variance.numpy(), [4, 4])


def test_the_cumulative_average_counts_the_batches_that_each_channel_has_seen():
    mean, variance, seen = _variables(0)
    for count, value in (([4.0, 0.0], 2.0), ([4.0, 4.0], 10.0)):
        moments = Moments(ops.convert_to_tensor(count), ops.full((2,), value), ops.full((2,), value))
        running.update(mean, variance, moments, None, seen, unbiased_variance=False)
    np.testing.assert_array_equal(seen.numpy(), [2, 1])
    np.testing.assert_allclose(mean.numpy(), [6, 10])
    np.testing.assert_allclose(variance.numpy(), [6, 10])


def test_the_deviation_can_be_averaged_instead_of_the_variance():
    mean, variance, _ = _variables()
    running.update(mean, variance, _moments(5), 0.75, None, False, averaged_deviation_epsilon=1.0)
    np.testing.assert_allclose(variance.numpy(), (0.75 * 5**0.5 + 0.25 * 3) ** 2 - 1, rtol=1e-6)
