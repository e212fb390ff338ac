"""Batch normalization in few operations, its gradient written out: for any axis, dtype and mask, and XLA."""

import enum
from typing import Any, NamedTuple

import tensorflow as tf

from keras_bn.kernels import depthwise
from keras_bn.statistics.moments import Moments, reduction_axes, summed, values_counted

# Up to this ratio of mean to standard deviation E[x²] - E[x]² keeps the variance to some 4e-6 in single
# precision, where shifted data keep it to 1e-7; beyond it, x is shifted first.
_SAFE_RATIO = 4.0


class Form(enum.Enum):
    """Of what operations the kernel is made."""

    XLA = "what XLA fuses into few loops"
    SMALL = "few operations, for tensors that take less time than starting one does"
    LARGE = "few passes over the tensor"
    DEPTHWISE = "LARGE, with the passes of `depthwise`"


def batch_norm(
    x: Any, gamma: Any, beta: Any, epsilon: float, axis: int, mask: Any, form: Form
) -> tuple[Any, Moments]:
    """As `kernels.tensorflow.batch_norm`, with `x` in the dtype of gamma.

    With d = x - shift and offset = E[d], in about a third of the passes over the data that the derivative of
    each operation would take:

        y = d * scale + beta - offset * scale,  scale = gamma / sqrt(variance + epsilon)
        dx = (dy + slope * d + constant) * scale

    The shift is zero where that is safe, for it costs a pass, and else the mean.
    """
    static_shape, shape = x.shape, tf.shape(x)
    rank, channels = len(static_shape), static_shape[axis]
    axis %= rank
    axes = reduction_axes(rank, axis)
    count = values_counted(x, axes, mask)
    if mask is not None:
        count = tf.broadcast_to(tf.squeeze(count, axes), [channels])
    divisor = tf.maximum(count, 1)
    layout = _Layout(channels, axis == rank - 1, form)
    if not layout.channels_last:
        x = tf.reshape(x, [tf.reduce_prod(shape[:axis]), channels, tf.reduce_prod(shape[axis + 1 :])])
        mask = None if mask is None else tf.reshape(tf.broadcast_to(mask, shape), tf.shape(x))

    def counted(values: Any) -> Any:
        return values if mask is None else tf.where(mask, values, tf.zeros([], values.dtype))

    @tf.custom_gradient
    def normalize(x: Any, gamma: Any, beta: Any) -> Any:
        def mean_and_variance(values: Any) -> tuple[Any, Any]:
            mean = layout.sums(values) / divisor
            return mean, layout.squares(values) / divisor - tf.square(mean)

        def about(shift: Any) -> tuple[Any, ...]:
            """d, offset, mean and variance, given a shift."""
            d = x - layout.spread(shift)
            offset, variance = mean_and_variance(counted(d))
            return d, offset, shift + offset, tf.maximum(variance, 0)

        if form in (Form.XLA, Form.SMALL):
            d, offset, mean, variance = about(layout.sums(counted(x)) / divisor)
        else:
            mean, variance = mean_and_variance(counted(x))
            # Squares that overflowed are not safe either.
            safe = tf.reduce_all(
                tf.logical_and(tf.square(mean) <= _SAFE_RATIO**2 * variance, tf.math.is_finite(variance))
            )
            unshifted = (x, mean, mean, variance)
            d, offset, mean, variance = tf.cond(safe, lambda: unshifted, lambda: about(mean))
        inverse = 1 / tf.sqrt(variance + epsilon)
        scale = gamma * inverse
        y = layout.affine(d, scale, beta - offset * scale)

        def gradient(dy: Any, *_: Any) -> tuple[Any, Any, Any]:
            dbeta = layout.sums(dy)
            dgamma = (layout.products(dy, d) - offset * dbeta) * inverse
            slope = -dgamma * inverse / divisor
            constant = -dbeta / divisor - slope * offset
            # From left to right it takes the memory of one tensor.
            dx = (dy + counted(layout.affine(d, slope, constant))) * layout.spread(scale)
            return dx, dgamma, dbeta

        return (y, mean, variance), gradient

    y, mean, variance = normalize(x, gamma, beta)
    if not layout.channels_last:
        y = tf.ensure_shape(tf.reshape(y, shape), static_shape)
    return y, Moments(count, mean, variance)


class _Layout(NamedTuple):
    """The operations of a `Form` on tensors of (..., channels) or of (before, channels, behind).

    They are the fastest of those measured. XLA's loops over several axes at once take ten times as long as
    its matrix products, TensorFlow's three times as long as one axis after the other.
    """

    channels: int
    channels_last: bool
    form: Form

    def spread(self, vector: Any) -> Any:
        """A vector of channels, made to broadcast."""
        return vector if self.channels_last else vector[:, None]

    def sums(self, values: Any) -> Any:
        """The sum of each channel; partial ones first, which long sums in single precision need."""
        if not self.channels_last:
            rows = self._rows(values)
            if self.form is Form.XLA:
                return self._over_rows(tf.matmul(rows, tf.ones([tf.shape(rows)[1], 1], rows.dtype)))
            return self._over_rows(tf.reduce_sum(rows, 1))
        if self.form is Form.XLA and len(values.shape) > 2:
            values = tf.matmul(tf.ones([1, tf.shape(values)[-2]], values.dtype), values)
        return tf.reshape(summed(values, list(range(len(values.shape) - 1))), [self.channels])

    def squares(self, values: Any) -> Any:
        """The sum of each channel's squares."""
        if self.form in (Form.XLA, Form.SMALL) or self.channels_last:
            return self.products(values, values)

        @tf.custom_gradient
        def squares(values: Any) -> Any:
            # One operation, which keeps no squares; but the root in it has no derivative at zero.
            norms = tf.raw_ops.EuclideanNorm(input=self._rows(values), axis=[1])
            return self._over_rows(tf.square(norms)), lambda d: 2 * values * self.spread(d)

        return squares(values)

    def _rows(self, values: Any) -> Any:
        """(before * channels, behind)"""
        return tf.reshape(values, [-1, tf.shape(values)[2]])

    def _over_rows(self, sums: Any) -> Any:
        return tf.reduce_sum(tf.reshape(sums, [-1, self.channels]), 0)

    def products(self, a: Any, b: Any) -> Any:
        """The sum of each channel of a * b."""
        if self.form is not Form.DEPTHWISE:
            return self.sums(a * b)
        sums = depthwise.products(self._table(a), self._table(b))
        if self.channels_last:
            return self._over_rows(sums)
        return tf.reduce_sum(tf.reshape(sums, [self.channels, -1]), 1)

    def affine(self, values: Any, scale: Any, offset: Any) -> Any:
        """values * scale + offset, with two vectors of channels."""
        if self.form is not Form.DEPTHWISE:
            return values * self.spread(scale) + self.spread(offset)
        shape = tf.shape(values)
        row = _row(values)
        scale, offset = (tf.reshape(tf.broadcast_to(self.spread(v), row), [-1]) for v in (scale, offset))
        y = depthwise.affine(self._table(values), scale, offset)
        return tf.ensure_shape(tf.reshape(y, shape), values.shape)

    def _table(self, values: Any) -> Any:
        return tf.reshape(values, [-1, tf.reduce_prod(_row(values))])


def _row(values: Any) -> Any:
    """The shape of what `depthwise` takes for a row: more axes would be slow, fewer would make long sums.

    It is not empty, unlike the values may be, for a filter must not be.
    """
    return tf.maximum(tf.shape(values)[1:][-2:], 1)
