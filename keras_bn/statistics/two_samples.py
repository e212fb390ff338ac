"""Whether two samples come from one distribution: the test of Kolmogorov and Smirnov."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def kolmogorov_smirnov(one: ArrayLike, other: ArrayLike) -> float:
    """The p-value of the two-sample test of Kolmogorov and Smirnov.

    The statistic D is the largest distance between the two empirical distribution functions. With
    n = n₁n₂/(n₁ + n₂) and λ = (√n + 0.12 + 0.11/√n) D (Stephens, 1970),

        p = 2 Σₖ (-1)ᵏ⁻¹ exp(-2 k² λ²)

    The test makes no assumption about the distribution. Ties make it conservative.

    Args:
        one: A sample, one-dimensional, of at least one number.
        other: Another sample, independent of the first.

    Returns:
        The probability of a D at least as large if both samples come from one distribution.

    >>> kolmogorov_smirnov([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    1.0
    >>> kolmogorov_smirnov(np.arange(50.0), np.arange(50.0) + 100) < 1e-12
    True
    """
    first, second = np.sort(np.asarray(one, float)), np.sort(np.asarray(other, float))
    places = np.concatenate([first, second])
    distance = np.abs(
        np.searchsorted(first, places, side="right") / len(first)
        - np.searchsorted(second, places, side="right") / len(second)
    ).max()
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    scaled = (root + 0.12 + 0.11 / root) * float(distance)
    if scaled < 0.2:  # the series converges slowly here, and its sum is 1 to 12 digits
        return 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms)))
