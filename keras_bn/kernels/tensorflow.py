"""TensorFlow's fused batch normalization, made safe for badly scaled data."""

import math
from typing import Any

import tensorflow as tf

from keras_bn.statistics.moments import Moments

# Beyond this ratio of mean to standard deviation the kernel's single-precision sums lose the variance.
_SAFE_RATIO = 32.0


def applies(x: Any, axis: int) -> bool:
    """Whether the kernel can normalize `x`: channels last, any rank from 2 up, 16 or 32-bit floats."""
    return axis % len(x.shape) == len(x.shape) - 1 and x.dtype in (tf.float32, tf.float16, tf.bfloat16)


def fused_batch_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Moments]:
    """Normalize channels-last `x` by its own moments.

    Args:
        x: tensor of rank >= 2, float32, float16 or bfloat16, channels last.
        gamma: float32 scale of shape (channels,).
        beta: float32 offset of shape (channels,).
        epsilon: added to the variance.

    Returns:
        The normalized tensor, with the shape and dtype of `x`, and the `Moments` in float32.
        Differentiable with respect to `x`, `gamma` and `beta` through the tensor, not through the moments.
    """
    shape = tf.shape(x)
    channels = x.shape[-1]
    rows = tf.reshape(x, [-1, 1, 1, channels]) if len(x.shape) != 4 else x
    static = math.prod(d or 0 for d in x.shape[:-1])
    count = tf.constant(static, tf.float32) if static else tf.cast(tf.reduce_prod(shape[:-1]), tf.float32)
    y, mean, variance = _normalize(rows, gamma, beta, epsilon)
    ill_scaled = tf.reduce_any(tf.square(mean) > _SAFE_RATIO**2 * (variance + epsilon))
    y, mean, variance = tf.cond(
        ill_scaled, lambda: _normalize_shifted(rows, gamma, beta, epsilon), lambda: (y, mean, variance)
    )
    # The kernel returns the unbiased variance; the batch was normalized by the biased one.
    variance = variance * (tf.maximum(count - 1, 0) / tf.maximum(count, 1))
    return tf.reshape(y, shape) if len(x.shape) != 4 else y, Moments(count, mean, variance)


def _normalize(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    none = tf.zeros([0])
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=none, variance=none, epsilon=epsilon, is_training=True
    )[:3]


def _normalize_shifted(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """The same after subtracting the mean, taken in double precision: the result does not depend on it."""
    shift = tf.stop_gradient(tf.cast(tf.reduce_mean(tf.cast(x, tf.float64), [0, 1, 2]), tf.float32))
    centred = tf.cast(tf.cast(x, tf.float32) - shift, x.dtype)
    y, mean, variance = _normalize(centred, gamma, beta, epsilon)
    return y, mean + shift, variance
