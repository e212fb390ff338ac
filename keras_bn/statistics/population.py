"""Moments of a whole data set, streamed batch by batch and merged by counts without rounding.

Every value has the same weight. Unlike an average of the variances of the batches, the result includes the
spread between batches, so it does not depend on how the data is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from keras_bn.errors import KerasBNError
from keras_bn.statistics.exact import ExactSum, product
from keras_bn.statistics.moments import aligned_mask, reduction_axes


class PopulationMoments:
    """Count, mean and variance per channel of all data that it was given.

    Of batches with count nᵢ, mean μᵢ and biased variance vᵢ it keeps

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

    def update(self, values: ArrayLike, axis: int = -1) -> None:
        """Add a batch.

        Args:
            values: any real dtype, `channels` long on `axis`; every other axis is reduced over.
            axis: the channel axis.
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
            count: how many values per channel it had; nothing happens when it is 0.
            mean: `(channels,)`.
            variance: `(channels,)`, biased (divided by `count`).
        """
        mean, variance = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
        if mean.shape != (self.channels,) or variance.shape != (self.channels,):
            raise KerasBNError(
                f"Moments of {self.channels} channels were given a mean of shape {mean.shape} and a variance "
                f"of shape {variance.shape}; pass the axis that holds the channels."
            )
        if not count:
            return
        count = int(count)
        with np.errstate(over="ignore", invalid="ignore"):
            square, error = product(mean, mean)
        if not (np.isfinite(square + error).all() and np.isfinite(variance * count).all()):
            raise KerasBNError("Moments must be finite, and so must the squares of the means.")
        self._sum.add_product(mean, count)
        self._squares.add_product(variance, count)
        self._squares.add_product(square, count)
        self._squares.add_product(error, count)
        self.count += count
        self.batches += 1

    def merge(self, other: PopulationMoments) -> None:
        """Add everything that `other` was given."""
        if other.channels != self.channels:
            raise KerasBNError(f"Moments of {self.channels} and of {other.channels} channels do not merge.")
        self._sum.merge(other._sum)
        self._squares.merge(other._squares)
        self.count += other.count
        self.batches += other.batches

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        """The state as arrays, from which `from_arrays` makes equal moments."""
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
        """The biased variance, divided by n, `(channels,)`; this is what Keras's own layer keeps."""
        self._require(1, "a variance")
        return self._variance(self.count)

    @property
    def unbiased_variance(self) -> NDArray[np.float64]:
        """The unbiased variance, divided by n - 1, `(channels,)`.

        This is what the paper (section 3.1) and PyTorch keep.
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


def device_moments(values: Any, axis: int = -1, mask: Any = None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Moments of one batch on the device, eagerly or in a graph, for `PopulationMoments.update_moments`.

    Each row (the last axis but the channels) is reduced in float32 and the rows are merged in float64. A
    float32 reduction of a whole image batch loses three digits more, a float64 one takes three times as long.

    Args:
        values: a floating tensor of rank 2 or more.
        axis: the channel axis.
        mask: booleans that fit as in `keras_bn.BatchNormalization`; values under False are left out.

    Returns:
        The count (an int64 scalar), the mean and the biased variance (float64, `(channels,)`); of nothing,
        the count and the variance are 0.

    Raises:
        KerasBNError: if the mask does not fit, or differs between channels.

    >>> count, mean, variance = device_moments(np.array([[1.0], [2.0], [6.0]], "float32"))
    >>> int(count), mean.numpy(), variance.numpy()
    (3, array([3.]), array([4.66666667]))
    """
    values = tf.convert_to_tensor(values)
    axis %= values.shape.rank
    if mask is not None:
        values, axis = _kept(values, axis, tf.convert_to_tensor(mask)), 1
    rank, channels = values.shape.rank, values.shape[axis]
    if axis != rank - 1:
        values = tf.transpose(values, [*reduction_axes(rank, axis), axis])
    if rank == 2:
        values = tf.cast(values, tf.float64)
        count = tf.shape(values, tf.int64)[0]
        mean = tf.reduce_mean(values, 0)
        squares = tf.reduce_sum(tf.math.squared_difference(values, mean), 0)
    else:
        values = values if values.dtype == tf.float64 else tf.cast(values, tf.float32)
        rows = tf.reshape(values, [-1, tf.shape(values)[-2], channels])
        row_means = tf.reduce_mean(rows, 1)
        within = tf.reduce_sum(tf.math.squared_difference(rows, row_means[:, tf.newaxis]), 1)
        row_means = tf.cast(row_means, tf.float64)
        length = tf.shape(rows, tf.int64)[1]
        count = tf.shape(rows, tf.int64)[0] * length
        mean = tf.reduce_mean(row_means, 0)
        between = tf.reduce_sum(tf.math.squared_difference(row_means, mean), 0)
        squares = tf.reduce_sum(tf.cast(within, tf.float64), 0) + between * tf.cast(length, tf.float64)
    return count, mean, tf.math.divide_no_nan(squares, tf.cast(count, tf.float64))


def _kept(values: tf.Tensor, axis: int, mask: tf.Tensor) -> tf.Tensor:
    """What the mask leaves, `(count, channels)`."""
    mask = aligned_mask(mask, tuple(values.shape), axis)
    if mask.shape[axis] != 1:
        raise KerasBNError(
            f"A mask of shape {tuple(mask.shape)} differs between channels (axis {axis}), so they have no "
            "common count; mask examples or positions only."
        )
    mask = tf.squeeze(mask, axis)
    values = tf.transpose(values, [*reduction_axes(values.shape.rank, axis), axis])
    return tf.boolean_mask(values, tf.broadcast_to(mask, tf.shape(values)[:-1]))
