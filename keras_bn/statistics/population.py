"""Moments of a whole data set, streamed batch by batch and merged by counts without rounding.

Every value has the same weight. Unlike an average of the variances of the batches, the result includes the
spread between batches, so it does not depend on how the data is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike, NDArray

from keras_bn.errors import KerasBNError
from keras_bn.statistics.exact import ExactSum, product
from keras_bn.statistics.moments import Moments, aligned_mask, squared_difference, summed, value_count

_LIMIT = 2.0**990  # of the numbers whose products are split exactly, below where the splitting overflows
_HELD = 16  # batches added at once; one by one, the sums take three to nine times as long


class PopulationMoments:
    """Count, mean and variance per channel of all batches that were added.

    From batches with count nᵢ, mean μᵢ and biased variance vᵢ it keeps

        n = Σ nᵢ,    S = Σ nᵢ μᵢ,    Q = Σ nᵢ (vᵢ + μᵢ²)

    where S and Q are exact sums. The mean S/n and the variance (Q - S²/n)/n are rounded once, so nothing is
    lost to cancellation, and shards can be merged in any order to the same bits.

    Args:
        channels: The number of channels, at least 1.

    Attributes:
        count: The number of values per channel.
        batches: The number of batches.

    Raises:
        KerasBNError: If values or moments have another number of channels or are not finite, or if there are
            no values to have moments of.

    >>> moments = PopulationMoments(1)
    >>> moments.update([[1.0], [2.0]])
    >>> moments.update([[6.0]])
    >>> moments.count, moments.mean, moments.variance, moments.unbiased_variance
    (3, array([3.]), array([4.66666667]), array([7.]))
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.count = 0
        self.batches = 0
        self._sum = ExactSum(channels)
        self._squares = ExactSum(channels)
        self._held: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []

    def update(self, values: ArrayLike, axis: int = -1) -> None:
        """Add a batch.

        Args:
            values: Array of any real dtype, of length `channels` along `axis`. All other axes are reduced.
            axis: The channel axis.
        """
        array = np.moveaxis(np.asarray(values), axis, -1)
        array = array.reshape(-1, array.shape[-1]).astype(np.float64)
        if not len(array):
            return
        mean = array.mean(0)
        array -= mean
        self.update_moments(len(array), mean, np.einsum("nc,nc->c", array, array) / len(array))

    def update_moments(self, count: int, mean: ArrayLike, variance: ArrayLike) -> None:
        """Add a batch whose moments were computed elsewhere, on the device for instance.

        Args:
            count: Number of values per channel. If it is 0, nothing is added.
            mean: Means of the channels, `(channels,)`.
            variance: Biased variances, divided by `count`, `(channels,)`.
        """
        mean, variance = np.array(mean, np.float64), np.array(variance, np.float64)
        if mean.shape != (self.channels,) or variance.shape != (self.channels,):
            raise KerasBNError(
                f"Moments of {self.channels} channels were given a mean of shape {mean.shape} and a variance "
                f"of shape {variance.shape}; pass the axis that holds the channels."
            )
        if not count:
            return
        count = int(count)
        with np.errstate(over="ignore"):
            summable = (count * np.maximum(mean * mean, np.abs(variance)) < _LIMIT).all()
        if not summable:
            raise KerasBNError("Moments must be finite, and so must the squares of the means.")
        self._held.append((count, mean, variance))
        self.count += count
        self.batches += 1
        if len(self._held) == _HELD:
            self._add_held()

    def _add_held(self) -> None:
        """Add the batches that were held back to the sums."""
        if not self._held:
            return
        counts, means, variances = (np.array(each, np.float64) for each in zip(*self._held, strict=True))
        self._held = []
        counts = counts[:, None]
        square, error = product(means, means)
        self._sum.add_product(means, counts)
        for part in (variances, square, error):
            self._squares.add_product(part, counts)

    def update_rows(self, counts: ArrayLike, means: ArrayLike, variances: ArrayLike) -> None:
        """Add a batch that was reduced row by row elsewhere (see `row_moments`).

        Args:
            counts: Number of values per channel of each row, `(rows, 1)`.
            means: Means of the rows, `(rows, channels)`.
            variances: Biased variances, `(rows, channels)` or `(1, channels)`.
        """
        counts = np.asarray(counts, np.float64).ravel()
        total = counts.sum()
        if not total:
            return
        # Products with matrices, in one buffer: twice as fast as sums of temporary arrays.
        squares = np.array(means, np.float64)
        mean = counts @ squares / total
        squares -= mean
        np.square(squares, out=squares)
        squares += np.asarray(variances)
        self.update_moments(round(total), mean, counts @ squares / total)

    def merge(self, other: PopulationMoments) -> None:
        """Add the values of `other`."""
        if other.channels != self.channels:
            raise KerasBNError(f"Moments of {self.channels} and of {other.channels} channels do not merge.")
        self._add_held()
        other._add_held()
        self._sum.merge(other._sum)
        self._squares.merge(other._squares)
        self.count += other.count
        self.batches += other.batches

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        """The state as arrays, from which `from_arrays` makes equal moments."""
        self._add_held()
        counts = np.array([self.count, self.batches], np.int64)
        return {"counts": counts, "sum": self._sum.to_array(), "squares": self._squares.to_array()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.int64]]) -> PopulationMoments:
        """The moments whose `to_arrays` gave `arrays`."""
        result = cls(arrays["sum"].shape[1])
        result.count, result.batches = (int(value) for value in arrays["counts"])
        result._sum = ExactSum.from_array(arrays["sum"])
        result._squares = ExactSum.from_array(arrays["squares"])
        return result

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean, `(channels,)`."""
        self._require(1, "a mean")
        divisor = self.count << -ExactSum.UNIT
        return np.array([total / divisor for total in self._sum.integers()])

    @property
    def variance(self) -> NDArray[np.float64]:
        """The biased variance, divided by n, `(channels,)`; as in Keras's own layer."""
        self._require(1, "a variance")
        return self._variance(self.count)

    @property
    def unbiased_variance(self) -> NDArray[np.float64]:
        """The unbiased variance, divided by n - 1, `(channels,)`.

        The paper (section 3.1) and PyTorch use this one.
        """
        self._require(2, "an unbiased variance")
        return self._variance(self.count - 1)

    def _variance(self, divisor: int) -> NDArray[np.float64]:
        """(Q - S²/n) / divisor from integers, whose quotient Python rounds correctly."""
        unit = -ExactSum.UNIT
        pairs = zip(self._sum.integers(), self._squares.integers(), strict=True)
        deviations = [((squares * self.count) << unit) - total * total for total, squares in pairs]
        # Moments of batches are rounded, so a variance of zero may come out as a tiny negative number.
        return np.array([max(value, 0) / (self.count * divisor << 2 * unit) for value in deviations])

    def _require(self, count: int, what: str) -> None:
        if self.count < count:
            raise KerasBNError(
                f"{what} needs at least {count} values per channel, got {self.count}; give it more data."
            )
        self._add_held()


def row_moments(values: Any, axis: int = -1, mask: Any = None) -> Moments:
    """Moments of each example of a batch on the device, on every backend, eagerly or in a compiled function.

    Each example is a row, which is reduced in float32, so it gives the same in every batch. The rows are
    merged in float64 by `PopulationMoments.update_rows`. Reducing a whole image batch in float32 would lose
    three more digits. Doing it in float64 would take three times as long, if the backend has float64.

    Args:
        values: Floating-point tensor of rank 2 or more. 16-bit values are reduced in float32.
        axis: The channel axis. The first of the other axes is that of the examples.
        mask: Boolean tensor of a shape that `keras_bn.BatchNormalization` accepts. Values under False are
            left out, even NaN.

    Returns:
        The count `(rows, 1)`, the mean `(rows, channels)` and the biased variance `(rows, channels)`, or
        `(1, channels)` if all rows have the same. A row that is masked entirely has 0 in all three.

    Raises:
        KerasBNError: If the mask does not fit, or differs between channels.

    >>> moments = PopulationMoments(1)
    >>> moments.update_rows(*row_moments(np.array([[1.0], [2.0], [6.0]], "float32")))
    >>> moments.count, moments.mean, moments.variance
    (3, array([3.]), array([4.66666667]))
    """
    values = ops.convert_to_tensor(values)
    rank = len(values.shape)
    axis %= rank
    dtype = "float64" if keras.backend.standardize_dtype(values.dtype) == "float64" else "float32"
    values = ops.cast(values, dtype)
    weights = None if mask is None else ops.cast(_common_mask(values, axis, mask), dtype)
    if rank == 2:
        means = values if axis == 1 else ops.transpose(values)
        if weights is None:
            return Moments(ops.ones_like(means[:, :1]), means, ops.zeros_like(means[:1]))
        counts = weights if axis == 1 else ops.transpose(weights)
        counts = ops.broadcast_to(counts, ops.shape(means[:, :1]))
        return Moments(counts, ops.where(counts > 0, means, 0), ops.zeros_like(means[:1]))
    positions = [a for a in range(rank) if a != axis][1:]
    # XLA joins sums of sums to one long sum, which rounds more; what its mean lacks is added.
    xla = keras.backend.backend() == "jax"
    if weights is None:
        counts = value_count(values, positions)
        means = summed(values, positions) / counts
        if xla:
            means = means + summed(values - means, positions) / counts
        variances = summed(squared_difference(values, means), positions) / counts
        counts = ops.ones_like(ops.take(means, [0], axis)) * counts
    else:
        weights = ops.broadcast_to(weights, ops.shape(ops.take(values, [0], axis)))
        counts = summed(weights, positions)
        values = ops.where(weights > 0, values, 0)
        means = summed(values, positions) / ops.maximum(counts, 1)
        if xla:
            rest = ops.where(weights > 0, values - means, 0)
            means = means + summed(rest, positions) / ops.maximum(counts, 1)
        squares = ops.where(weights > 0, squared_difference(values, means), 0)
        variances = summed(squares, positions) / ops.maximum(counts, 1)
    rows = [ops.squeeze(each, positions) for each in (counts, means, variances)]
    return Moments(*(rows if axis else map(ops.transpose, rows)))


def _common_mask(values: Any, axis: int, mask: Any) -> Any:
    """The mask made to broadcast to the values, of length 1 along the channels."""
    mask = aligned_mask(ops.convert_to_tensor(mask), tuple(values.shape), axis)
    if mask.shape[axis] != 1:
        raise KerasBNError(
            f"A mask of shape {tuple(mask.shape)} differs between channels (axis {axis}), so they have no "
            "common count; mask examples or positions only."
        )
    return mask
