"""Batch normalization with the gradient written out: for any axis, dtype and mask, also under XLA."""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf

from keras_bn._tensorflow import compiles_with_xla
from keras_bn.statistics.moments import Moments, reduction_axes, summed, value_count

# Up to this ratio of mean to standard deviation, E[x²] - E[x]² keeps the variance to some 4e-6 in single
# precision, where shifted data keep it to 1e-7. Beyond it, x is shifted first.
_SAFE_RATIO = 4.0


def batch_norm(
    x: Any, gamma: Any, beta: Any, epsilon: float, axis: int, mask: Any = None, always_shifted: bool = False
) -> tuple[Any, Moments]:
    """As `kernels.batch_norm`, with `x` in the dtype of gamma.

    With d = x - shift and offset = E[d], in about a third of the passes over the data that the derivative of
    each operation would take:

        y = d * scale + beta - offset * scale,  scale = gamma / sqrt(variance + epsilon)
        dx = (dy + slope * d + constant) * scale

    The shift costs a pass. It is zero where that is safe, and the mean elsewhere or if `always_shifted`.
    """
    static_shape, shape = x.shape, tf.shape(x)
    rank, channels = len(static_shape), static_shape[axis]
    axis %= rank
    axes = reduction_axes(rank, axis)
    count = value_count(x, axes, mask)
    if mask is not None:
        count = tf.broadcast_to(tf.squeeze(count, axes), [channels])
    divisor = tf.maximum(count, 1)
    channels_last = axis == rank - 1
    if not channels_last:
        x = tf.reshape(x, [tf.reduce_prod(shape[:axis]), channels, tf.reduce_prod(shape[axis + 1 :])])
        mask = None if mask is None else tf.reshape(tf.broadcast_to(mask, shape), tf.shape(x))

    sums = partial(_sums, channels_last=channels_last, in_xla=compiles_with_xla())

    def counted(values: Any) -> Any:
        return values if mask is None else tf.where(mask, values, tf.zeros([], values.dtype))

    def spread(vector: Any) -> Any:
        return vector if channels_last else vector[:, None]

    @tf.custom_gradient
    def normalize(x: Any, gamma: Any, beta: Any) -> Any:
        def mean_and_variance(values: Any) -> tuple[Any, Any]:
            mean = sums(values) / divisor
            return mean, sums(tf.square(values)) / divisor - tf.square(mean)

        def shifted(mean: Any) -> tuple[Any, ...]:
            d = x - spread(mean)
            offset, variance = mean_and_variance(counted(d))
            return d, offset, mean + offset, tf.maximum(variance, 0)

        if always_shifted:
            d, offset, mean, variance = shifted(sums(counted(x)) / divisor)
        else:
            mean, variance = mean_and_variance(counted(x))
            # Squares that overflowed are not safe either.
            safe = tf.reduce_all((tf.square(mean) <= _SAFE_RATIO**2 * variance) & tf.math.is_finite(variance))
            unshifted = (x, mean, mean, variance)
            d, offset, mean, variance = tf.cond(safe, lambda: unshifted, lambda: shifted(mean))
        inverse = 1 / tf.sqrt(variance + epsilon)
        scale = gamma * inverse
        y = d * spread(scale) + spread(beta - offset * scale)

        def gradient(dy: Any, *_: Any) -> tuple[Any, Any, Any]:
            dbeta = sums(dy)
            dgamma = (sums(dy * d) - offset * dbeta) * inverse
            slope = -dgamma * inverse / divisor
            constant = -dbeta / divisor - slope * offset
            # From left to right it takes the memory of one tensor.
            dx = (dy + counted(d * spread(slope) + spread(constant))) * spread(scale)
            return dx, dgamma, dbeta

        return (y, mean, variance), gradient

    y, mean, variance = normalize(x, gamma, beta)
    if not channels_last:
        y = tf.ensure_shape(tf.reshape(y, shape), static_shape)
    return y, Moments(count, mean, variance)


def _sums(values: Any, channels_last: bool, in_xla: bool) -> Any:
    """The sum of each channel of (..., channels) or of (before, channels, behind).

    It goes axis by axis, which long sums in single precision need. XLA sums by products with ones: on a CPU
    its loops take up to ten times as long. Elsewhere products could be rewritten to 16 bits, sums are not.
    """
    if channels_last:
        if in_xla and len(values.shape) > 2:
            values = tf.matmul(tf.ones([1, tf.shape(values)[-2]], values.dtype), values)
        sums = summed(values, list(range(len(values.shape) - 1)))
        return tf.reshape(sums, [values.shape[-1]])
    rows = tf.reshape(values, [-1, tf.shape(values)[2]])
    if in_xla:
        rows = tf.matmul(rows, tf.ones([tf.shape(rows)[1], 1], rows.dtype))
    return tf.reduce_sum(tf.reshape(tf.reduce_sum(rows, 1), [-1, values.shape[1]]), 0)
