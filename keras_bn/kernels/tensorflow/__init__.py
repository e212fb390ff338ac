"""TensorFlow: which of its implementations normalizes a tensor."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from keras_bn._tensorflow import compiles_with_xla
from keras_bn.kernels.general import affine, scale_and_offset
from keras_bn.kernels.tensorflow import analytic, fused
from keras_bn.statistics.moments import Moments

__all__ = ["affine", "batch_norm", "scale_and_offset"]

# On a CPU the fused kernel costs more to start: forward and backward, it takes 1.8 times as long as the
# analytic one at 2**14 values, 1.4 times at 2**16 and 0.8 of it at 2**17. Below that size it takes less to
# shift the data than to choose whether to.
_LARGE_SIZE = 2**17
# Compiled with XLA, matrices of this size take as long either way; smaller ones take 0.8 of the time if they
# are always shifted. Other shapes take longer.
_LARGE_MATRIX_IN_XLA = 2**20
# Batches that people train with, and a common length of images and sequences, where tracing does not tell.
_BATCHES, _USUAL_LENGTH = (8, 128), 64


def batch_norm(
    inputs: Any, gamma: Any, beta: Any, epsilon: float, axis: int, mask: Any = None
) -> tuple[Any, Moments]:
    """As `kernels.batch_norm`, with the fastest implementation that takes the arguments."""
    x, gamma, beta = (tf.convert_to_tensor(v) for v in (inputs, gamma, beta))
    axis %= len(x.shape)
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    if x.dtype == tf.float16 and not on_gpu:
        # A CPU converts float16 value by value in the kernel and in transposing: 1.3 to 3 times as slowly.
        x = tf.cast(x, gamma.dtype)

    def with_fused() -> tuple[Any, Moments]:
        return fused.batch_norm(x, gamma, beta, epsilon, axis)

    def with_analytic(always_shifted: bool = False) -> tuple[Any, Moments]:
        as_gamma = tf.cast(x, gamma.dtype)
        y, moments = analytic.batch_norm(as_gamma, gamma, beta, epsilon, axis, mask, always_shifted)
        # In the dtype of the kernel's outputs, since a graph may choose between the two in each step.
        return tf.cast(y, x.dtype) if x.dtype.size == 2 else y, moments

    def with_shifted() -> tuple[Any, Moments]:
        return with_analytic(always_shifted=True)

    if compiles_with_xla():
        small = _likely_size(x.shape, _BATCHES[1]) < _LARGE_MATRIX_IN_XLA
        return with_analytic(always_shifted=len(x.shape) == 2 and axis == 1 and small and not on_gpu)
    # With the channels elsewhere, transposing 32 bits takes longer than operations in place.
    any_axis = on_gpu or x.dtype in (tf.float16, tf.bfloat16)
    takes_fused = (
        mask is None
        and gamma.dtype == tf.float32
        and x.dtype in (tf.float32, tf.float16, tf.bfloat16)
        and (any_axis or axis == len(x.shape) - 1)
    )
    with_many = with_fused if takes_fused else with_analytic
    least, most = (_likely_size(x.shape, batch) for batch in _BATCHES)
    if on_gpu or least >= _LARGE_SIZE:
        return with_many()
    if most < _LARGE_SIZE:
        return with_shifted()
    # A decision in each step takes 0.04 ms, a third of a step where a batch of 128 would still be small.
    return tf.cond(tf.size(x) >= _LARGE_SIZE, with_many, with_shifted)


def _likely_size(shape: tf.TensorShape, usual_batch: int) -> int:
    """The number of values, with a guess for each unknown length."""
    usual = [usual_batch] + [_USUAL_LENGTH] * (len(shape) - 1)
    return math.prod(guess if known is None else known for known, guess in zip(shape, usual, strict=True))
