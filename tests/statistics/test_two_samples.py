"""The test of Kolmogorov and Smirnov, held to SciPy's."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from keras_bn.statistics.two_samples import kolmogorov_smirnov


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5, 2.0])
@pytest.mark.parametrize(("one", "other"), [(50, 60), (400, 30), (2000, 2000)])
def test_it_agrees_with_scipy(shift, one, other):
    random = np.random.default_rng(one)
    first, second = random.normal(size=one), random.normal(shift, size=other)
    ours, theirs = kolmogorov_smirnov(first, second), ks_2samp(first, second).pvalue
    # SciPy's is the exact distribution, of which Stephens's formula is within a few percent.
    assert ours == pytest.approx(theirs, rel=0.15, abs=1e-4)


def test_ties_make_it_conservative():
    random = np.random.default_rng(0)
    p = [kolmogorov_smirnov(*random.integers(3, size=(2, 100))) for _ in range(300)]
    assert np.mean(np.array(p) < 0.05) <= 0.05
