"""Moments of a data set: whatever the cut, the moments of all of it."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_bn.errors import KerasBNError
from keras_bn.statistics.population import PopulationMoments, device_moments


def shown(*batches, channels=3):
    moments = PopulationMoments(channels)
    for batch in batches:
        moments.update(batch)
    return moments


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 40), max_size=5), st.sampled_from([0, 1e3, 1e6]))
def test_the_cut_does_not_matter(seed, cuts, mean):
    values = np.random.default_rng(seed).normal(mean, 1, (40, 3))
    moments = shown(*np.split(values, sorted(cuts)))
    assert moments.count == 40
    # Float64 leaves 16 digits, of which a mean of 1e6 deviations costs the variance six twice over.
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(moments.variance, values.var(0), rtol=1e-13 + 1e-15 * mean)
    np.testing.assert_allclose(moments.unbiased_variance, values.var(0, ddof=1), rtol=1e-13 + 1e-15 * mean)


def test_shards_merge_in_any_order():
    random = np.random.default_rng(0)
    shards = [random.normal(i, 1 + i, (n, 3)) for i, n in enumerate((5, 1, 17, 0))]
    whole = np.concatenate(shards)
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        merged = PopulationMoments(3)
        for i in order:
            merged.merge(shown(shards[i]))
        assert merged.count == 23
        np.testing.assert_allclose(merged.mean, whole.mean(0), rtol=1e-14)
        np.testing.assert_allclose(merged.variance, whole.var(0), rtol=1e-14)


def test_batches_weigh_by_their_counts_and_the_spread_between_them_counts():
    moments = shown(np.zeros((9, 1)), np.full((1, 1), 10.0), channels=1)
    assert (moments.mean[0], moments.variance[0]) == (1.0, 9.0)


def test_any_axis():
    values = np.random.default_rng(0).normal(size=(4, 3, 5))
    moments = PopulationMoments(3)
    moments.update(values, axis=1)
    np.testing.assert_allclose(moments.mean, values.mean((0, 2)), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, values.var((0, 2)), rtol=1e-14)


def test_nothing_has_no_moments():
    moments = shown(np.zeros((0, 3)))
    with pytest.raises(KerasBNError, match="at least 1 value"):
        _ = moments.mean
    moments.update(np.zeros((1, 3)))
    with pytest.raises(KerasBNError, match="at least 2 value"):
        _ = moments.unbiased_variance


def test_another_number_of_channels():
    with pytest.raises(KerasBNError, match="3 channels were given a mean of shape"):
        shown(np.zeros((5, 4)))


SHAPES = [((5, 3), -1), ((5, 4, 3), -1), ((5, 4, 3), 1), ((5, 4, 6, 3), -1), ((2, 3, 4, 5, 6), 2)]


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_on_the_device(shape, axis, in_graph):
    values = np.random.default_rng(0).normal(100, 1, shape)
    axes = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    reduce = tf.function(device_moments) if in_graph else device_moments
    # Rows in float32: a unit in the last place of 100 is 8e-6, against a deviation of 1.
    for dtype, tolerance in (("float32", 3e-6), ("float64", 1e-12)):
        count, mean, variance = reduce(tf.constant(values, dtype), axis)
        x = values.astype(dtype).astype(float)
        assert (int(count), mean.dtype, variance.dtype) == (x.size // shape[axis], tf.float64, tf.float64)
        np.testing.assert_allclose(mean, x.mean(axes), rtol=0, atol=tolerance)
        np.testing.assert_allclose(variance, x.var(axes), rtol=0, atol=tolerance * 10)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_reduced_in_thirty_two(dtype):
    values = tf.cast(np.random.default_rng(0).normal(3, 1, (8, 50, 50, 2)), dtype)
    _, mean, variance = device_moments(values)
    exact = tf.cast(values, tf.float64).numpy()
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_a_mask_leaves_values_out(shape, axis):
    random = np.random.default_rng(0)
    values = random.normal(size=shape)
    others = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    for rank in (1, len(others)):
        mask = random.random(others[:rank]) > 0.4
        kept = np.moveaxis(values, axis, -1)[mask].reshape(-1, shape[axis])
        count, mean, variance = device_moments(values, axis, mask)
        assert int(count) == len(kept)
        np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-12)
        np.testing.assert_allclose(variance, kept.var(0), rtol=1e-12)


def test_a_mask_that_leaves_nothing_counts_nothing():
    count, _, variance = device_moments(np.ones((4, 5, 3)), mask=np.zeros((4, 5), bool))
    assert int(count) == 0 and not variance.numpy().any()


def test_a_mask_by_channel_is_refused():
    with pytest.raises(KerasBNError, match="differs between channels"):
        device_moments(np.ones((4, 5, 3)), mask=np.ones((4, 5, 3), bool))
