"""Moments of a whole data set, streamed batch by batch and merged by counts in float64.

The merge is that of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances" (1979): unlike E[x²] - E[x]² it does not cancel, and unlike an average of per-batch
variances it keeps the spread between batches, so the result does not depend on how the data is cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from keras_bn.errors import KerasBNError
from keras_bn.statistics.moments import aligned_mask, reduction_axes


class PopulationMoments:
    """Count, mean and variance per channel of everything it was shown.

    With count n, mean μ and M = Σ(x - μ)² so far, a batch (n', μ', M') is merged by

        δ = μ' - μ,    μ += δ n'/(n + n'),    M += M' + δ² n n'/(n + n'),    n += n'.

    Merging is associative and commutative to float64 rounding: shards may be reduced apart and merged in any
    order.

    Args:
        channels: the number of channels, at least 1.

    Attributes:
        count: how many values per channel it was shown.
        batches: in how many batches.

    Raises:
        KerasBNError: if values or moments with another number of channels are shown, or moments are asked of
            nothing.

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
        self._mean = np.zeros(channels)
        self._squares = np.zeros(channels)

    def update(self, values: ArrayLike, axis: int = -1) -> None:
        """Show it a batch.

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
        """Show it a batch that was reduced elsewhere, on the device for instance.

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
        total = self.count + int(count)
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._squares = self._squares + variance * count + delta**2 * (self.count * count / total)
        self.count = total
        self.batches += 1

    def merge(self, other: PopulationMoments) -> None:
        """Take in what `other` has seen, as if it had been shown here."""
        if other.count:
            batches = self.batches + other.batches
            self.update_moments(other.count, other.mean, other.variance)
            self.batches = batches

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean, `(channels,)`."""
        self._require(1, "a mean")
        return self._mean

    @property
    def variance(self) -> NDArray[np.float64]:
        """The biased variance M/n, `(channels,)`; what Keras's own layer keeps."""
        self._require(1, "a variance")
        return self._squares / self.count

    @property
    def unbiased_variance(self) -> NDArray[np.float64]:
        """The unbiased variance M/(n - 1), `(channels,)`; what the paper (section 3.1) and PyTorch keep."""
        self._require(2, "an unbiased variance")
        return self._squares / (self.count - 1)

    def _require(self, count: int, what: str) -> None:
        if self.count < count:
            raise KerasBNError(
                f"{what} needs at least {count} value(s) per channel, got {self.count}; show it more data."
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
