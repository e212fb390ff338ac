"""Compare new data with data whose statistics are known, with a known rate of false alarms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras_bn.errors import KerasBNError
from keras_bn.statistics.examples import FEATURES, ExampleStatistics
from keras_bn.statistics.two_samples import kolmogorov_smirnov

FEWEST = 20  # examples, below which the test sees hardly any shift


@dataclass(frozen=True)
class DriftRow:
    """One tensor that was compared.

    Attributes:
        name: `input NAME` for an input of the model, or the path of a BN layer for the input of that layer.
        shift: The median over the channels of `abs(new mean - mean) / deviation`.
        variance_ratio: The median over the channels of new variance / variance.
        p_value: The probability of a distance like the one found if nothing had changed, corrected for all
            tests of the report.
    """

    name: str
    shift: float
    variance_ratio: float
    p_value: float


@dataclass(frozen=True)
class DriftReport:
    """The comparison of a sample with a reference. It prints as a table.

    Attributes:
        rows: One `DriftRow` per tensor.
        alpha: The false-alarm rate: the probability that `drifted` is true for examples that are drawn
            independently from the distribution of the reference.
        examples: The number of examples in the sample.
        reference_examples: The number of examples in the reference.
    """

    rows: tuple[DriftRow, ...]
    alpha: float
    examples: int
    reference_examples: int

    @property
    def drifted(self) -> bool:
        """Whether the sample differs from the reference."""
        return any(row.p_value < self.alpha for row in self.rows)

    @property
    def summary(self) -> str:
        """The report in one line."""
        verdict = "the data has drifted" if self.drifted else "no drift found"
        return (
            f"{verdict}: {self.examples} examples against {self.reference_examples}, false-alarm rate "
            f"{self.alpha:g}"
        )

    def __str__(self) -> str:
        width = max(len("tensor"), *(len(row.name) for row in self.rows))
        lines = [self.summary, f"{'tensor':{width}}  shift in deviations  variance ratio  p-value"]
        lines += [
            f"{row.name:{width}}  {row.shift:<19.3g}  {row.variance_ratio:<14.3g}  {row.p_value:.2g}"
            for row in self.rows
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists, strings and numbers."""
        return {**asdict(self), "drifted": self.drifted}


def compare(
    reference: Mapping[str, ExampleStatistics], sample: Mapping[str, ExampleStatistics], alpha: float = 0.01
) -> DriftReport:
    """Compare the examples of a sample with those of a reference, tensor by tensor.

    Each of the four numbers that describe an example (`ExampleStatistics`) is compared by the two-sample test
    of Kolmogorov and Smirnov, and the p-values are multiplied by the number of tests (Bonferroni), as in
    Rabanser et al. (1810.11953). The test makes no assumption about the distribution, so `alpha` bounds the
    rate of false alarms for any data whose examples are independent.

    Raises:
        KerasBNError: If `alpha` is not between 0 and 1, or if one of the two has fewer than 20 examples.
    """
    if not 0 < alpha < 1:
        raise KerasBNError(f"alpha must be between 0 and 1, but it is {alpha!r}.")
    names = [name for name in reference if name in sample]
    counts = [min(part[name].examples for name in names) for part in (sample, reference)]
    for count, what in zip(counts, ("sample", "reference"), strict=True):
        if count < FEWEST:
            raise KerasBNError(f"The {what} has {count} examples; a comparison needs at least {FEWEST}.")
    tests = len(names) * len(FEATURES)
    rows = tuple(_row(name, reference[name], sample[name], tests) for name in names)
    return DriftReport(rows, alpha, *counts)


def _row(name: str, reference: ExampleStatistics, sample: ExampleStatistics, tests: int) -> DriftRow:
    pairs = zip(reference.features.T, sample.features.T, strict=True)
    p_value = min(1.0, tests * min(kolmogorov_smirnov(old, new) for old, new in pairs))
    old, new = reference.moments, sample.moments
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.abs(new.mean - old.mean) / np.sqrt(old.variance)
        ratio = new.variance / old.variance
    # A channel that never varied has no scale; it counts as unchanged unless its value is another one.
    shift = np.where(np.isnan(shift), 0.0, shift)
    ratio = np.where(np.isnan(ratio), 1.0, ratio)
    return DriftRow(name, float(np.median(shift)), float(np.median(ratio)), p_value)
