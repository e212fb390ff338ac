"""Moments of a data set: whatever the cut, the moments of all of it."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_bn.errors import KerasBNError
from keras_bn.statistics.moments import merged
from keras_bn.statistics.population import PopulationMoments, row_moments
from keras_bn.surgery._compiled import as_tensor
from keras_bn.surgery._compiled import compiled as compile_for_backend


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


def test_many_batches_have_the_same_moments_in_any_order_and_however_often_one_looks():
    batches = np.random.default_rng(0).normal(1e3, 1, (50, 4, 3))
    watched = PopulationMoments(3)
    for i, batch in enumerate(batches[::-1], 1):
        watched.update(batch)
        assert watched.count == 4 * i and np.isfinite(watched.mean).all()
    moments = shown(*batches)
    assert moments.mean.tolist() == watched.mean.tolist()
    assert moments.variance.tolist() == watched.variance.tolist()
    np.testing.assert_allclose(moments.mean, batches.mean((0, 1)), rtol=1e-14)


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


def on_the_device(values, axis=-1, mask=None, compiled=False):
    """Moments reduced row by row on the device, the rows merged on the host."""

    def reduce(leaves):
        return list(row_moments(leaves[0], axis, leaves[1]))

    leaves = [as_tensor(values), as_tensor(mask)]
    run = reduce
    if compiled:
        shapes = [() if leaf is None else (None, *leaf.shape[1:]) for leaf in leaves]
        run = compile_for_backend(reduce, [], leaves, shapes)
    moments = PopulationMoments(values.shape[axis])
    moments.update_rows(*map(ops.convert_to_numpy, run(leaves)))
    return moments


# JAX has no float64 unless it is asked for.
PRECISIONS = [("float32", 1e-5)]
if keras.backend.backend() != "jax":
    PRECISIONS.append(("float64", 1e-12))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_on_the_device(shape, axis, compiled):
    values = np.random.default_rng(0).normal(100, 1, shape)
    axes = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    # Rows in float32: a unit in the last place of 100 is 8e-6, against a deviation of 1.
    for dtype, tolerance in PRECISIONS:
        x = values.astype(dtype)
        moments = on_the_device(x, axis, compiled=compiled)
        assert moments.count == x.size // shape[axis]
        x = x.astype(float)
        np.testing.assert_allclose(moments.mean, x.mean(axes), rtol=0, atol=tolerance)
        np.testing.assert_allclose(moments.variance, x.var(axes), rtol=0, atol=tolerance * 10)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_reduced_in_thirty_two(dtype):
    values = ops.cast(np.random.default_rng(0).normal(3, 1, (8, 50, 50, 2)).astype("float32"), dtype)
    moments = on_the_device(values)
    exact = ops.convert_to_numpy(ops.cast(values, "float32")).astype(float)
    np.testing.assert_allclose(moments.mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, exact.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_a_mask_leaves_values_out(shape, axis):
    random = np.random.default_rng(0)
    others = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    for rank in (1, len(others)):
        mask = random.random(others[:rank]) > 0.4
        for dtype, tolerance in PRECISIONS:
            values = random.normal(size=shape).astype(dtype)
            kept = np.moveaxis(values, axis, -1)[mask].reshape(-1, shape[axis]).astype(float)
            moments = on_the_device(values, axis, mask)
            assert moments.count == len(kept)
            np.testing.assert_allclose(moments.mean, kept.mean(0), rtol=0, atol=tolerance)
            np.testing.assert_allclose(moments.variance, kept.var(0), rtol=0, atol=tolerance)


def test_what_is_under_the_mask_may_be_nan():
    values = np.ones((4, 5, 3), "float32")
    values[:, 2:] = np.nan
    moments = on_the_device(values, mask=np.arange(5)[None] * np.ones((4, 1)) < 2)
    assert (moments.count, moments.mean.tolist(), moments.variance.tolist()) == (8, [1.0] * 3, [0.0] * 3)


def test_a_mask_that_leaves_nothing_counts_nothing():
    assert on_the_device(np.ones((4, 5, 3), "float32"), mask=np.zeros((4, 5), bool)).count == 0


def test_a_mask_by_channel_is_refused():
    with pytest.raises(KerasBNError, match="differs between channels"):
        row_moments(np.ones((4, 5, 3), "float32"), mask=np.ones((4, 5, 3), bool))


def test_rows_merged_on_the_device_are_those_merged_on_the_host():
    values = np.random.default_rng(0).normal(3, 2, (6, 5, 4, 3)).astype("float32")
    mask = np.random.default_rng(1).random((6, 5, 4)) > 0.5
    for each in (None, mask):
        _, mean, variance = map(ops.convert_to_numpy, merged(row_moments(values, mask=each)))
        moments = on_the_device(values, mask=each)
        np.testing.assert_allclose(mean, moments.mean, rtol=1e-6)
        np.testing.assert_allclose(variance, moments.variance, rtol=1e-6)
