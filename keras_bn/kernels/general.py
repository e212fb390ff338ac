"""Batch normalization in `keras.ops`, for any backend, with the derivatives that the backend takes of it."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_bn.statistics.moments import Moments, along, batch_moments


def batch_norm(
    inputs: Any, gamma: Any, beta: Any, epsilon: float, axis: int, mask: Any = None
) -> tuple[Any, Moments]:
    """As `kernels.batch_norm`."""
    x = ops.cast(inputs, gamma.dtype)
    moments = batch_moments(x, axis, mask)
    return normalized(x, moments, axis, gamma, beta, epsilon), moments


def normalized(
    x: Any, moments: Moments, kept: int | tuple[int, ...], gamma: Any, beta: Any, epsilon: float
) -> Any:
    """(x - mean) * gamma / sqrt(variance + epsilon) + beta.

    Args:
        x: Tensor in the dtype of the moments.
        moments: Moments with one axis for each of the axes `kept` of `x`.
        kept: The axes of `x` that the moments have. The last of them is the channel axis.
        gamma: Scale of shape (channels,).
        beta: Offset of shape (channels,).
        epsilon: Number added to the variance.
    """
    rank, channel_axis = len(x.shape), kept if isinstance(kept, int) else kept[-1]
    mean, deviation = moments.mean, ops.sqrt(moments.variance + epsilon)
    mean, deviation = (along(v, rank, kept) for v in (mean, deviation))
    gamma, beta = (along(v, rank, channel_axis) for v in (gamma, beta))
    return (x - mean) * (gamma / deviation) + beta


def scale_and_offset(gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> tuple[Any, Any]:
    """As `kernels.scale_and_offset`."""
    # The maximum changes no value. It keeps compilers from replacing gamma / sqrt(v) by gamma * rsqrt(v),
    # which is not correctly rounded and would move a retrofitted layer off the identity.
    scale = gamma / ops.maximum(ops.sqrt(variance + epsilon), 1e-30)
    return scale, beta - mean * scale


def affine(inputs: Any, scale: Any, offset: Any, axis: int) -> Any:
    """As `kernels.affine`."""
    rank = len(inputs.shape)
    return ops.cast(inputs, scale.dtype) * along(scale, rank, axis) + along(offset, rank, axis)
