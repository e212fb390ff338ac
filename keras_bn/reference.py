"""The paper's algorithms 1 and 2 (Ioffe and Szegedy, 1502.03167) in NumPy float64: the oracle of the tests.

Written to be compared with the paper line by line, not to be fast. Arguments are arrays of any dtype; results
are float64. gamma and beta have shape (channels,).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class BatchMoments(NamedTuple):
    """Per channel: the count of values m, their mean and their biased variance, each of shape (channels,)."""

    count: Any  # an Array, which mypy will not let take the place of tuple.count
    mean: Array
    variance: Array


class Gradients(NamedTuple):
    """Gradients of a loss: `x` has the shape of the inputs, `gamma` and `beta` have shape (channels,)."""

    x: Array
    gamma: Array
    beta: Array


def _others(rank: int, axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(rank) if a != axis % rank)


def _spread(vector: ArrayLike, rank: int, axis: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return np.reshape(np.asarray(vector, np.float64), shape)


def batch_moments(x: ArrayLike, axis: int = -1, mask: ArrayLike | None = None) -> BatchMoments:
    """Moments of a mini-batch, algorithm 1, lines 1 and 2; with a mask, over the values under True.

    Args:
        x: array of rank >= 2.
        axis: the channel axis.
        mask: boolean, broadcasts to `x` by NumPy's rule.

    Returns:
        `BatchMoments`; mean and variance are 0 in a channel without a value.

    >>> batch_moments([[1.0, 5.0], [3.0, 5.0]]).variance
    array([1., 0.])
    """
    x = np.asarray(x, np.float64)
    kept = np.broadcast_to(True if mask is None else np.asarray(mask, bool), x.shape)
    axes = _others(x.ndim, axis)
    count = kept.sum(axes).astype(np.float64)
    divisor = np.maximum(count, 1)
    mean = np.where(kept, x, 0).sum(axes) / divisor
    deviation = np.where(kept, x - _spread(mean, x.ndim, axis), 0)
    return BatchMoments(count, mean, np.square(deviation).sum(axes) / divisor)


def train_forward(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    epsilon: float,
    axis: int = -1,
    mask: ArrayLike | None = None,
) -> tuple[Array, BatchMoments]:
    """Algorithm 1: every value normalized by the moments of the batch, scaled and shifted."""
    x = np.asarray(x, np.float64)
    moments = batch_moments(x, axis, mask)
    return inference_forward(x, gamma, beta, moments.mean, moments.variance, epsilon, axis), moments


def train_gradients(
    dy: ArrayLike,
    x: ArrayLike,
    gamma: ArrayLike,
    epsilon: float,
    axis: int = -1,
    mask: ArrayLike | None = None,
) -> Gradients:
    """Gradients of a loss through algorithm 1, by the chain rule of the paper's section 3.

    With a mask all values are normalized, so all gradients `dy` count, but only the values under True had a
    part in the moments.

    Args:
        dy: gradient of the loss with respect to the outputs, in the shape of `x`.
        x: the inputs.
        gamma: the scale.
        epsilon: as in the forward pass.
        axis: the channel axis.
        mask: as in the forward pass.
    """
    dy, x = np.asarray(dy, np.float64), np.asarray(x, np.float64)
    kept = np.broadcast_to(True if mask is None else np.asarray(mask, bool), x.shape)
    axes = _others(x.ndim, axis)
    moments = batch_moments(x, axis, mask)
    count, mean, variance, scale = (
        _spread(v, x.ndim, axis) for v in (np.maximum(moments.count, 1), *moments[1:], gamma)
    )
    deviation = x - mean
    root = np.sqrt(variance + epsilon)
    dx_hat = dy * scale
    d_variance = (dx_hat * deviation).sum(axes, keepdims=True) * -0.5 * root**-3
    d_mean = -dx_hat.sum(axes, keepdims=True) / root
    dx = dx_hat / root + np.where(kept, d_variance * 2 * deviation / count + d_mean / count, 0)
    return Gradients(dx, (dy * deviation / root).sum(axes), dy.sum(axes))


def population_moments(batches: Iterable[ArrayLike], axis: int = -1) -> tuple[Array, Array]:
    """Algorithm 2, line 10: E[x] = E_B[mean_B] and Var[x] = m / (m - 1) E_B[variance_B].

    Args:
        batches: mini-batches, all with the same number m > 1 of values per channel.
        axis: the channel axis.

    Returns:
        Mean and unbiased variance, each of shape (channels,).
    """
    moments = [batch_moments(batch, axis) for batch in batches]
    count = moments[0].count
    mean = np.mean([m.mean for m in moments], axis=0)
    return mean, count / (count - 1) * np.mean([m.variance for m in moments], axis=0)


def inference_forward(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    epsilon: float,
    axis: int = -1,
) -> Array:
    """Algorithm 2, line 11: y = gamma * (x - mean) / sqrt(variance + epsilon) + beta.

    >>> inference_forward([[3.0]], [2.0], [1.0], [1.0], [3.0], 1.0)
    array([[3.]])
    """
    x = np.asarray(x, np.float64)
    gamma, beta, mean, variance = (_spread(v, x.ndim, axis) for v in (gamma, beta, mean, variance))
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta
