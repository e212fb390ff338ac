"""A few numbers that describe each example of a data set, for comparing data sets by their examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_bn.statistics.population import PopulationMoments

_KEPT = 2048  # examples whose numbers are kept; more make the test hardly more sensitive
FEATURES = ("mean", "root mean square of the means", "largest mean", "mean square")


class ExampleStatistics:
    """Moments of a tensor over a data set, and four numbers for each of its examples.

    With z = (x - center) / scale by channel, and z̄ the mean of z over the positions of an example, the four
    are the mean of z̄ over the channels, its root mean square, its largest magnitude, and the mean of z² over
    everything. They do not depend on how the data is cut into batches.

    Args:
        center: Offset that is subtracted from each channel, `(channels,)`.
        scale: Positive number that each channel is divided by, `(channels,)`.

    Attributes:
        moments: Count, mean and variance by channel.
    """

    def __init__(self, center: NDArray[np.float64], scale: NDArray[np.float64]) -> None:
        self.center, self.scale = np.asarray(center, float), np.asarray(scale, float)
        self.moments = PopulationMoments(len(self.center))
        self._features: list[NDArray[np.float64]] = []
        self._examples = 0

    @classmethod
    def around(cls, values: NDArray[Any]) -> ExampleStatistics:
        """Statistics centered and scaled by the moments of a first batch, `(examples, ..., channels)`."""
        flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
        deviation = flat.std(0)
        return cls(flat.mean(0), np.where(deviation > 0, deviation, 1.0))

    def update(self, values: NDArray[Any]) -> None:
        """Add a batch, `(examples, ..., channels)`."""
        table = values.reshape(len(values), -1, values.shape[-1]).astype(np.float64)
        self.update_rows(np.ones(table.shape[:2]), table, np.zeros_like(table))

    def update_rows(self, counts: NDArray[Any], means: NDArray[Any], variances: NDArray[Any]) -> None:
        """Add a batch as counts, means and variances of rows.

        Args:
            counts: The number of values per channel in each row, `(examples, rows)`.
            means: `(examples, rows, channels)`.
            variances: Biased, `(examples, rows, channels)`.
        """
        counts, means, variances = (np.asarray(each, np.float64) for each in (counts, means, variances))
        present = counts.sum(1) > 0  # a mask may leave nothing of an example
        counts, means, variances = counts[present], means[present], variances[present]
        if not means.size:
            return
        share = counts / counts.sum()
        mean = np.einsum("er,erc->c", share, means)
        variance = np.einsum("er,erc->c", share, variances + (means - mean) ** 2)
        self.moments.update_moments(int(counts.sum()), mean, variance)
        self._examples += len(means)
        if sum(map(len, self._features)) >= _KEPT:
            return
        weights = counts / counts.sum(1, keepdims=True)
        z = (means - self.center) / self.scale
        z_bar = np.einsum("er,erc->ec", weights, z)
        squares = np.einsum("er,erc->ec", weights, z**2 + variances / self.scale**2).mean(1)
        self._features.append(
            np.stack([z_bar.mean(1), np.sqrt((z_bar**2).mean(1)), np.abs(z_bar).max(1), squares], 1)
        )

    @property
    def examples(self) -> int:
        """The number of examples."""
        return self._examples

    @property
    def features(self) -> NDArray[np.float64]:
        """The four numbers of the first 2048 examples, `(examples, 4)`."""
        return np.concatenate([np.zeros((0, len(FEATURES))), *self._features])[:_KEPT]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The state as arrays, from which `from_arrays` makes equal statistics."""
        return {
            "center": self.center,
            "scale": self.scale,
            "features": self.features,
            "examples": np.array(self._examples),
            **{f"moments.{name}": array for name, array in self.moments.to_arrays().items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ExampleStatistics:
        """The statistics whose `to_arrays` gave `arrays`."""
        result = cls(arrays["center"], arrays["scale"])
        prefix = "moments."
        result.moments = PopulationMoments.from_arrays(
            {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        )
        result._features = [arrays["features"]]
        result._examples = int(arrays["examples"])
        return result
