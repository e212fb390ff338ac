"""Batch normalization in few operations, its gradient written out: for any axis, dtype and mask, and XLA."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_bn.statistics.moments import Moments, reduction_axes, summed, values_counted

# Up to this ratio of mean to standard deviation E[x²] - E[x]² loses four bits, no more than rounding
# x / deviation does; beyond it, x is shifted first.
_SAFE_RATIO = 4.0


def batch_norm(
    x: Any, gamma: Any, beta: Any, epsilon: float, axis: int, mask: Any, xla: bool
) -> tuple[Any, Moments]:
    """As `kernels.tensorflow.batch_norm`, with `x` in the dtype of gamma; `xla` says whether XLA compiles it.

    With d = x - shift and offset = E[d], in about a third of the passes over the data that the derivative of
    each operation would take:

        y = d * scale + beta - offset * scale,  scale = gamma / sqrt(variance + epsilon)
        dx = (dy + slope * d + constant) * scale

    The shift is zero where that is safe, for it costs a pass, and else the mean, which leaves no offset.
    """
    static_shape, shape = x.shape, tf.shape(x)
    rank, channels = len(static_shape), static_shape[axis]
    axis %= rank
    axes = reduction_axes(rank, axis)
    count = values_counted(x, axes, mask)
    if mask is not None:
        count = tf.broadcast_to(tf.squeeze(count, axes), [channels])
    divisor = tf.maximum(count, 1)
    layout = _Layout(channels, axis == rank - 1, xla)
    if not layout.channels_last:
        x = tf.reshape(x, [tf.reduce_prod(shape[:axis]), channels, tf.reduce_prod(shape[axis + 1 :])])
        mask = None if mask is None else tf.reshape(tf.broadcast_to(mask, shape), tf.shape(x))

    def counted(values: Any) -> Any:
        return values if mask is None else tf.where(mask, values, tf.zeros([], values.dtype))

    @tf.custom_gradient
    def normalize(x: Any, gamma: Any, beta: Any) -> Any:
        def about(shift: Any) -> tuple[Any, ...]:
            """d, offset, mean and variance, with the mean for a shift, given another that is near."""
            d = x - layout.spread(shift)
            with_influence = counted(d)
            offset = layout.sums(with_influence) / divisor
            variance = layout.sums_of_squares(with_influence) / divisor - tf.square(offset)
            return d - layout.spread(offset), tf.zeros_like(offset), shift + offset, tf.maximum(variance, 0)

        if xla and mask is None:
            # XLA fuses any shift into what follows, and one from the first example saves a pass.
            first = x[:1]
            d, offset, mean, variance = about(layout.sums(first) / _values_per_channel(first, channels))
        elif layout.channels_last or mask is not None:
            d, offset, mean, variance = about(layout.sums(counted(x)) / divisor)
        else:
            mean = layout.sums(x) / divisor
            variance = layout.sums_of_squares(x) / divisor - tf.square(mean)
            safe = tf.reduce_all(tf.square(mean) <= _SAFE_RATIO**2 * variance)
            unshifted = (x, mean, mean, variance)
            d, offset, mean, variance = tf.cond(safe, lambda: unshifted, lambda: about(mean))
        inverse = 1 / tf.sqrt(variance + epsilon)
        scale = gamma * inverse
        y = d * layout.spread(scale) + layout.spread(beta - offset * scale)

        def gradient(dy: Any, *_: Any) -> tuple[Any, Any, Any]:
            dbeta = layout.sums(dy)
            dgamma = (layout.sums(dy * d) - offset * dbeta) * inverse
            slope = -dgamma * inverse / divisor
            constant = -dbeta / divisor - slope * offset
            # From left to right it takes the memory of one tensor.
            dx = (dy + counted(d * layout.spread(slope) + layout.spread(constant))) * layout.spread(scale)
            return dx, dgamma, dbeta

        return (y, mean, variance), gradient

    y, mean, variance = normalize(x, gamma, beta)
    if not layout.channels_last:
        y = tf.ensure_shape(tf.reshape(y, shape), static_shape)
    return y, Moments(count, mean, variance)


def _values_per_channel(x: Any, channels: int) -> Any:
    """At least 1, to be divided by."""
    return tf.maximum(tf.cast(tf.size(x) // channels, x.dtype), 1)


class _Layout(NamedTuple):
    """Sums over all but the channels, of (..., channels) or of (before, channels, behind).

    The forms are the fastest of those measured. XLA's loops over several axes at once take ten times as long
    as its matrix products, TensorFlow's three times as long as one axis after the other.
    """

    channels: int
    channels_last: bool
    xla: bool

    def spread(self, vector: Any) -> Any:
        """A vector of channels, made to broadcast."""
        return vector if self.channels_last else vector[:, None]

    def sums(self, values: Any) -> Any:
        """The sum of each channel; partial ones first, which long sums in single precision need."""
        if not self.channels_last:
            before, _, behind = tf.unstack(tf.shape(values))
            rows = tf.reshape(values, [before * self.channels, behind])
            return self._over_rows(tf.matmul(rows, tf.ones([behind, 1], values.dtype)))
        if self.xla and len(values.shape) > 2:
            values = tf.matmul(tf.ones([1, tf.shape(values)[-2]], values.dtype), values)
        return tf.reshape(summed(values, list(range(len(values.shape) - 1))), [self.channels])

    def sums_of_squares(self, values: Any) -> Any:
        """The sum of each channel's squares."""
        if self.channels_last or self.xla:
            return self.sums(tf.square(values))
        # One operation, which keeps no squares.
        return self._over_rows(tf.square(tf.raw_ops.EuclideanNorm(input=values, axis=[2])))

    def _over_rows(self, rows: Any) -> Any:
        return tf.reduce_sum(tf.reshape(rows, [-1, self.channels]), 0)
