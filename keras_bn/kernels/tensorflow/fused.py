"""TensorFlow's FusedBatchNormV3 for any axis, made safe for badly scaled data."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from keras_bn.statistics.moments import Moments

# Beyond this ratio of mean to standard deviation the kernel's single-precision sums lose the variance: at
# 1e6, over 400 000 values, its mean is off by 1000 standard deviations.
_SAFE_RATIO = 32.0


def batch_norm(x: Any, gamma: Any, beta: Any, epsilon: float, axis: int) -> tuple[Any, Moments]:
    """As `kernels.batch_norm`, with `x` of 16 or 32 bits, gamma of 32 and no mask."""
    axis %= len(x.shape)
    kernel = _fused(_as_rows(x, axis), gamma, beta, epsilon)
    # The kernel returns the unbiased variance; the batch was normalized by the biased one. Without values it
    # returns NaN for both.
    count = tf.cast(tf.size(x, tf.int64) // x.shape[axis], tf.float32)
    mean = tf.math.multiply_no_nan(kernel.mean, tf.minimum(count, 1))
    share = tf.maximum(count - 1, 0) / tf.maximum(count, 1)
    variance = tf.math.multiply_no_nan(kernel.variance, share)
    return _like(x, kernel.y, axis), Moments(count, mean, variance)


def _as_rows(x: Any, axis: int) -> Any:
    """`x` as the kernel takes it: four axes, the channels last."""
    rank, channels = len(x.shape), x.shape[axis]
    if axis == rank - 1:
        return x if rank == 4 else tf.reshape(x, [-1, 1, 1, channels])
    # Transposing three axes and back takes less than converting 16 bits to 32 for operations in place.
    shape = tf.shape(x)
    before, after = tf.reduce_prod(shape[:axis]), tf.reduce_prod(shape[axis + 1 :])
    return tf.transpose(tf.reshape(x, [before, channels, after, 1]), [0, 2, 3, 1])


def _like(x: Any, rows: Any, axis: int) -> Any:
    """The inverse of `_as_rows`, for a tensor with the shape of `x`."""
    rank = len(x.shape)
    if axis == rank - 1:
        return rows if rank == 4 else tf.ensure_shape(tf.reshape(rows, tf.shape(x)), x.shape)
    return tf.ensure_shape(tf.reshape(tf.transpose(rows, [0, 3, 1, 2]), tf.shape(x)), x.shape)


class _Kernel(NamedTuple):
    """The results of FusedBatchNormV3. The reserves are for its gradient."""

    y: Any
    mean: Any
    variance: Any
    reserve_1: Any
    reserve_2: Any
    reserve_3: Any


def _forward(x: Any, gamma: Any, beta: Any, epsilon: float) -> _Kernel:
    none = tf.zeros([0])
    return _Kernel(
        *tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=none, variance=none, epsilon=epsilon, is_training=True
        )
    )


def _fused(x: Any, gamma: Any, beta: Any, epsilon: float) -> _Kernel:
    """The kernel on channels-last `x` of rank 4, run again on x - mean if the first run was inaccurate."""

    @tf.custom_gradient
    def normalize(x: Any, gamma: Any, beta: Any) -> Any:
        first = _forward(x, gamma, beta, epsilon)

        def centred(shift: Any) -> Any:
            return tf.cast(tf.cast(x, tf.float32) - shift, x.dtype)

        def shifted() -> tuple[Any, ...]:
            # The outputs do not depend on the shift, so any mean will do that is near enough.
            mean = tf.cast(tf.reduce_mean(tf.cast(x, tf.float64), [0, 1, 2]), tf.float32)
            return mean, *_forward(centred(mean), gamma, beta, epsilon)

        ill_scaled = tf.reduce_any(tf.square(first.mean) > _SAFE_RATIO**2 * (first.variance + epsilon))
        shift, *rest = tf.cond(ill_scaled, shifted, lambda: (tf.zeros_like(first.mean), *first))
        kernel = _Kernel(*rest)

        def gradient(dy: Any, *_: Any) -> tuple[Any, Any, Any]:
            return tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=dy,
                x=tf.cond(ill_scaled, lambda: centred(shift), lambda: x),
                scale=gamma,
                reserve_space_1=kernel.reserve_1,
                reserve_space_2=kernel.reserve_2,
                reserve_space_3=kernel.reserve_3,
                epsilon=epsilon,
                is_training=True,
            )[:3]

        return tuple(kernel._replace(mean=kernel.mean + shift)), gradient

    return _Kernel(*normalize(x, gamma, beta))
