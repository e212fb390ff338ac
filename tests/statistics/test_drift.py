"""Drift: false alarms are as rare as stated, shifts are found, and the cut into batches changes nothing."""

import numpy as np
import pytest

from keras_bn.errors import KerasBNError
from keras_bn.statistics.drift import compare
from keras_bn.statistics.examples import ExampleStatistics


def statistics(images, around=None, batch=32):
    result = ExampleStatistics.around(images[:batch] if around is None else around)
    for start in range(0, len(images), batch):
        result.update(images[start : start + batch])
    return result


def heavy_tailed(random, count):
    """Images whose brightness and contrast are log-normal: pixels of one image are far from independent."""
    brightness, contrast = random.lognormal(size=(2, count, 1, 1, 1))
    return brightness + contrast * random.normal(size=(count, 6, 6, 3))


def test_the_rate_of_false_alarms_is_at_most_the_one_stated():
    random = np.random.default_rng(0)
    reference = heavy_tailed(random, 300)
    known = {name: statistics(reference) for name in ("input", "bn")}
    alarms = 0
    for _ in range(300):
        sample = statistics(heavy_tailed(random, 60), reference[:32])
        alarms += compare(known, {"input": sample, "bn": sample}, alpha=0.05).drifted
    # Binomial(300, 0.05) exceeds 27 with a probability of 0.1%.
    assert alarms <= 27


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 1.0,
        lambda x: 0.5 * x,
        lambda x: x + np.random.default_rng(1).normal(scale=3, size=x.shape),
        lambda x: x * [1, 1, 3],
    ],
)
def test_a_shift_is_found(change):
    random = np.random.default_rng(2)
    reference = random.normal(2, 1, (300, 6, 6, 3))
    sample = statistics(change(random.normal(2, 1, (100, 6, 6, 3))), reference[:32])
    report = compare({"input": statistics(reference)}, {"input": sample})
    assert report.drifted
    assert "has drifted" in str(report)


def test_batches_may_be_cut_anywhere():
    images = np.random.default_rng(3).normal(5, 2, (100, 4, 4, 2))
    one, other = (statistics(images, images[:8], batch) for batch in (100, 7))
    # Moments of batches are rounded once each.
    np.testing.assert_allclose(one.moments.variance, other.moments.variance, rtol=1e-13)
    np.testing.assert_allclose(one.features, other.features, rtol=1e-13)
    assert one.examples == other.examples == 100


def test_rows_are_as_good_as_values():
    images = np.random.default_rng(4).normal(5, 2, (50, 4, 6, 2))
    values = statistics(images, images[:8])
    rows = ExampleStatistics(values.center, values.scale)
    rows.update_rows(np.full((50, 4), 6), images.mean(2), images.var(2))
    np.testing.assert_allclose(rows.features, values.features, rtol=1e-12)
    np.testing.assert_allclose(rows.moments.variance, values.moments.variance, rtol=1e-12)


def test_masked_rows_do_not_count():
    images = np.random.default_rng(7).normal(5, 2, (40, 6, 2))
    lengths = np.arange(40) % 7  # some examples have nothing left
    mask = np.arange(6) < lengths[:, None]
    masked = ExampleStatistics(np.zeros(2), np.ones(2))
    masked.update_rows(mask, np.where(mask[..., None], images, 1e9), np.zeros_like(images))
    kept = images[mask]
    assert masked.examples == (lengths > 0).sum()
    np.testing.assert_allclose(masked.moments.mean, kept.mean(0), rtol=1e-12)
    np.testing.assert_allclose(masked.moments.variance, kept.var(0), rtol=1e-12)


def test_the_statistics_round_trip_through_arrays():
    one = statistics(np.random.default_rng(5).normal(size=(30, 4)))
    again = ExampleStatistics.from_arrays(one.to_arrays())
    np.testing.assert_array_equal(again.features, one.features)
    np.testing.assert_array_equal(again.moments.mean, one.moments.mean)
    assert again.examples == 30


def test_constant_channels_do_not_divide_by_zero():
    images = np.ones((40, 3, 3, 1))
    report = compare({"input": statistics(images)}, {"input": statistics(images)})
    assert not report.drifted
    assert report.rows[0].shift == 0 and report.rows[0].variance_ratio == 1


def test_wrong_arguments():
    images = np.random.default_rng(6).normal(size=(40, 4))
    known = {"input": statistics(images)}
    with pytest.raises(KerasBNError, match="alpha must be between 0 and 1"):
        compare(known, known, alpha=1.5)
    with pytest.raises(KerasBNError, match="The sample has 5 examples"):
        compare(known, {"input": statistics(images[:5])})
