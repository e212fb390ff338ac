"""Which of TensorFlow's two kernels normalizes a tensor."""

import math
from typing import Any

import tensorflow as tf

from keras_bn._tensorflow import compiles_with_xla
from keras_bn.kernels import analytic, depthwise, fused
from keras_bn.kernels.analytic import Form
from keras_bn.statistics.moments import Moments

# The fused kernel costs more to start. Forward and backward it takes 1.8 times the time of `Form.SMALL` at
# 2**14 values, 1.3 times at 2**16, 0.75 of it at 2**17 and 0.6 at 2**18, for dense and convolutional shapes.
# `Form.LARGE`, with a mask or with the channels first, takes 0.9 of it at 2**17.
_LARGE_SIZE = 2**17
# So do depthwise convolutions: 1.1 times the time of other passes at 2**17 values, as much at 2**18, 0.8 to
# 0.97 of it from 2**19. With fewer rows the vectors of columns are too much to read, with more the sums of
# columns lose digits, and fewer columns take up to twice the time.
_DEPTHWISE_SIZE, _DEPTHWISE_ROWS, _DEPTHWISE_COLUMNS = 2**19, (16, 2**15), 64
# For lengths that are not known while tracing: batches that Keras trains with if not told otherwise and that
# people train with, and images and sequences of a common size.
_USUAL_BATCH, _BATCHES, _USUAL_LENGTH = 32, (8, 128), 64


def batch_norm(
    x: Any, gamma: Any, beta: Any, epsilon: float, axis: int, mask: Any = None
) -> tuple[Any, Moments]:
    """Normalize `x` by its own moments, over all axes but `axis`, with the faster kernel.

    Args:
        x: floating-point tensor of rank >= 2.
        gamma: scale of shape (channels,), float32, or float64 for the arithmetic to be float64.
        beta: offset of the shape and dtype of gamma.
        epsilon: added to the variance.
        axis: the channel axis.
        mask: what `moments.aligned_mask` returns: only values under True count for the moments.

    Returns:
        The normalized tensor, of the shape of `x`, and the `Moments` in gamma's dtype. Differentiable with
        respect to `x`, `gamma` and `beta` through the tensor, not through the moments.
    """
    gamma, beta = tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)
    if compiles_with_xla():
        form = Form.XLA
    elif mask is None and gamma.dtype == tf.float32 and _fused_takes(x, axis):
        return _by_size(x, gamma, beta, epsilon, axis)
    else:
        form = _form(x, axis, gamma.dtype)
    return analytic.batch_norm(tf.cast(x, gamma.dtype), gamma, beta, epsilon, axis, mask, form)


def _fused_takes(x: Any, axis: int) -> bool:
    """Channels last; and 16 bits, which it need not convert, with them anywhere."""
    return x.dtype in (tf.float16, tf.bfloat16) or (x.dtype == tf.float32 and _channels_last(x, axis))


def _channels_last(x: Any, axis: int) -> bool:
    return axis in (-1, len(x.shape) - 1)


def _by_size(x: Any, gamma: Any, beta: Any, epsilon: float, axis: int) -> tuple[Any, Moments]:
    """With the fused kernel if there are many values; where only a step can tell, it decides.

    The decision takes 0.04 ms: where a batch of 128 would be small, that would be a third of the step.
    """

    def with_fused() -> tuple[Any, Moments]:
        return fused.batch_norm(x, gamma, beta, epsilon, axis)

    def with_analytic() -> tuple[Any, Moments]:
        return analytic.batch_norm(x, gamma, beta, epsilon, axis, None, Form.SMALL)

    least, most = (_likely_size(x.shape, batch) for batch in _BATCHES)
    if x.dtype != tf.float32 or least >= _LARGE_SIZE:
        return with_fused()
    if most < _LARGE_SIZE:
        return with_analytic()
    return tf.cond(tf.size(x) >= _LARGE_SIZE, with_fused, with_analytic)


def _form(x: Any, axis: int, dtype: tf.DType) -> Form:
    size = _likely_size(x.shape)
    if size < _LARGE_SIZE:
        return Form.SMALL
    # Before the last two axes, with those before the channels taken for one axis, those behind for another.
    rows = _likely_size(x.shape[: max(1, len(x.shape) - 2)] if _channels_last(x, axis) else x.shape[:axis])
    columns = size // max(rows, 1)
    least_rows, most_rows = _DEPTHWISE_ROWS
    suits = size >= _DEPTHWISE_SIZE and least_rows <= rows <= most_rows and columns >= _DEPTHWISE_COLUMNS
    suits = suits and dtype == tf.float32 and depthwise.available()
    return Form.DEPTHWISE if suits else Form.LARGE


def _likely_size(shape: tf.TensorShape, usual_batch: int = _USUAL_BATCH) -> int:
    """How many values there are, with a guess for each unknown length."""
    usual = [usual_batch] + [_USUAL_LENGTH] * (len(shape) - 1)
    return math.prod(known or guess for known, guess in zip(shape, usual, strict=False))
