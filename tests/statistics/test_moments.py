"""Moments of a batch against the oracle, and the laws of merging and masking."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_bn import KerasBNError, reference
from keras_bn.statistics.moments import Moments, aligned_mask, batch_moments, merged


def _numpy(moments):
    return [ops.convert_to_numpy(v) for v in moments]


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_agree_with_the_oracle(axis, masked):
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (4, 5, 6)).astype("float32")
    mask = rng.random(x.shape) < 0.5 if masked else None
    expected = reference.batch_moments(x, axis, mask)
    count, mean, variance = _numpy(batch_moments(ops.convert_to_tensor(x), axis, mask))
    np.testing.assert_array_equal(np.broadcast_to(count, mean.shape), expected.count)
    np.testing.assert_allclose(mean, expected.mean, atol=1e-6)  # means near 2, a few roundings
    np.testing.assert_allclose(variance, expected.variance, rtol=1e-6)


@pytest.mark.parametrize(
    ("mask_shape", "axis", "aligned"),
    [
        ((4,), -1, (4, 1, 1)),
        ((4, 5), -1, (4, 5, 1)),
        ((4, 6), 1, (4, 1, 6)),
        ((4, 5), 1, (4, 5, 1)),
        ((5, 6), 0, (1, 5, 6)),
        ((1, 5), -1, (1, 5, 1)),
        ((4, 5, 6), -1, (4, 5, 6)),
        ((1, 5, 1), -1, (1, 5, 1)),
    ],
)
def test_masks_align_with_the_axes_that_are_not_channels(mask_shape, axis, aligned):
    mask = aligned_mask(np.random.default_rng(0).random(mask_shape) < 0.6, (4, 5, 6), axis)
    assert tuple(mask.shape) == aligned
    x = np.random.default_rng(1).normal(size=(4, 5, 6)).astype("float32")
    expected = reference.batch_moments(x, axis, ops.convert_to_numpy(mask))
    count, mean, variance = _numpy(batch_moments(ops.convert_to_tensor(x), axis, mask))
    np.testing.assert_allclose(np.broadcast_to(count, mean.shape), expected.count, rtol=1e-6)
    np.testing.assert_allclose(mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(variance, expected.variance, rtol=1e-5)


@pytest.mark.parametrize(
    ("mask_shape", "axis"), [((5,), -1), ((4, 6), -1), ((5, 6), 1), ((4, 5, 3), -1), ((4, 5, 6, 1), -1)]
)
def test_masks_that_do_not_fit_are_refused(mask_shape, axis):
    with pytest.raises(KerasBNError, match=r"does not fit inputs of shape \(4, 5, 6\)"):
        aligned_mask(np.ones(mask_shape, bool), (4, 5, 6), axis)


def test_a_mask_that_fits_in_two_ways_means_what_it_means_in_keras():
    # (batch, channels), as Keras hands it from layer to layer, and (batch, length) of inputs with axis=1.
    mask = aligned_mask(np.ones((4, 5), bool), (4, 5, 5), 1)
    assert tuple(mask.shape) == (4, 5, 1)


def test_a_mask_of_fewer_axes_that_fits_in_two_ways_is_refused():
    with pytest.raises(KerasBNError, match=r"read in two ways .* \(4, 5, 5, 2\) .* give it 4 axes"):
        aligned_mask(np.ones((4, 5), bool), (4, 5, 5, 2), 1)
    assert tuple(aligned_mask(np.ones((4, 1, 5, 1), bool), (4, 5, 5, 2), 1).shape) == (4, 1, 5, 1)
    assert tuple(aligned_mask(np.ones((4, 3), bool), (4, 5, 3, 2), 1).shape) == (4, 1, 3, 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.floats(-100, 100))
def test_merging_is_the_same_as_taking_all_at_once(sizes, mean):
    rng = np.random.default_rng(0)
    parts = [rng.normal(mean, 1, (size, 2)).astype("float32") for size in sizes]
    stacked = [
        np.stack([np.broadcast_to(v, 2) for v in column])
        for column in zip(
            *(_numpy(batch_moments(ops.convert_to_tensor(part), -1)) for part in parts), strict=True
        )
    ]
    found = _numpy(merged(Moments(*map(ops.convert_to_tensor, stacked))))
    expected = reference.batch_moments(np.concatenate(parts))
    np.testing.assert_array_equal(found[0], expected.count)
    np.testing.assert_allclose(found[1], expected.mean, atol=1e-6 * (1 + abs(mean)))
    # Each part's mean is rounded to float32, an error of 1e-7 |mean| beside a deviation near 1.
    np.testing.assert_allclose(found[2], expected.variance, rtol=1e-5, atol=1e-6 * (1 + abs(mean)))


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_large_mean_does_not_drown_the_variance_of_many_values(axis):
    # tf.reduce_mean over all three axes at once is off by hundreds of these standard deviations.
    x = np.moveaxis(np.random.default_rng(0).normal(1e4, 1e-2, (40, 100, 100, 3)).astype("float32"), -1, axis)
    expected = reference.batch_moments(x, axis)
    _, mean, variance = _numpy(batch_moments(ops.convert_to_tensor(x), axis))
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-7)
    np.testing.assert_allclose(variance, expected.variance, rtol=1e-4)
