"""JAX: batch normalization with the derivative written out."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from keras import ops

from keras_bn.kernels.general import affine, scale_and_offset
from keras_bn.statistics.moments import (
    Moments,
    along,
    batch_moments,
    reduction_axes,
    summed,
    value_count,
)

__all__ = ["affine", "batch_norm", "scale_and_offset"]

# Below this number of values a pass over them takes no longer than to choose whether to take it.
_SMALL_SIZE = 2**16


def batch_norm(
    inputs: Any, gamma: Any, beta: Any, epsilon: float, axis: int, mask: Any = None
) -> tuple[Any, Moments]:
    """As `kernels.batch_norm`.

    The derivative is a forward one, which JAX transposes, so that forward and reverse mode, `vmap`, `remat`
    and derivatives of any order work. The sums are plain ones: of a sharded array they are those of all
    shards.
    """
    x = ops.cast(inputs, gamma.dtype)
    y, moments = _normalized(x, gamma, beta, mask, epsilon, axis % x.ndim)
    return y, Moments(*map(jax.lax.stop_gradient, moments))


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _normalized(x: Any, gamma: Any, beta: Any, mask: Any, epsilon: float, axis: int) -> tuple[Any, Moments]:
    spread = partial(along, rank=x.ndim, kept=axis)
    moments = _moments(x, axis, epsilon) if mask is None else batch_moments(x, axis, mask)
    scale = gamma / jnp.sqrt(moments.variance + epsilon)
    return (x - spread(moments.mean)) * spread(scale) + spread(beta), moments


@_normalized.defjvp
def _derivative(epsilon: float, axis: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """dy = scale * (dx - mean(dx) - z * mean(z * dx)) + z * dgamma + dbeta, with z the normalized x.

    z is written as (x - mean) / deviation, which is not kept for the transposed pass, and vectors of channels
    are multiplied first, so that the sums of that pass are those of dy and of (x - mean) * dy.
    """
    x, gamma, beta, mask = primals
    dx, dgamma, dbeta, _ = tangents
    y, moments = _normalized(x, gamma, beta, mask, epsilon, axis)
    spread = partial(_spread, shape=x.shape, axis=axis)
    axes = reduction_axes(x.ndim, axis)
    inverse = 1 / jnp.sqrt(moments.variance + epsilon)
    centred = x - along(moments.mean, x.ndim, axis)
    divisor = jnp.maximum(moments.count, 1)
    counted = dx if mask is None else jnp.where(mask, dx, 0)
    centred_counted = centred if mask is None else jnp.where(mask, centred, 0)
    dmean = jnp.squeeze(summed(counted, axes), axes) / divisor
    product = inverse * jnp.squeeze(summed(centred_counted * counted, axes), axes) / divisor
    scale = gamma * inverse
    slope = inverse * (dgamma - scale * product)
    dy = along(scale, x.ndim, axis) * dx + spread(dbeta - scale * dmean) + centred * spread(slope)
    dmoments = Moments(jnp.zeros_like(moments.count), dmean, 2 * product / inverse)
    return (y, moments), (dy, dmoments)


def _moments(x: Any, axis: int, epsilon: float) -> Moments:
    """As `batch_moments` without a mask, in two passes where a third would change nothing.

    The variance is taken about the mean as it was rounded, and the mean of what is left corrects both. That
    has an effect where the mean is large beside the deviation. A CPU takes another pass for it, which is left
    out where no channel needs it. Other devices have the sum in the same pass, and would wait for the choice.
    """
    axes = reduction_axes(x.ndim, axis)
    count = value_count(x, axes)
    divisor = jnp.maximum(count, 1)
    mean = summed(x, axes) / divisor
    variance = summed(jnp.square(x - mean), axes) / divisor

    def corrected(mean: Any, variance: Any) -> tuple[Any, Any]:
        rest = summed(x - mean, axes) / divisor
        return mean + rest, jnp.maximum(variance - jnp.square(rest), 0)

    def corrected_if_needed(mean: Any, variance: Any) -> tuple[Any, Any]:
        needed = jnp.any(jnp.square(mean) > 2**10 * (variance + epsilon))
        return jax.lax.cond(needed, corrected, lambda *same: same, mean, variance)

    size = math.prod(x.shape)
    if isinstance(size, int) and size < _SMALL_SIZE:
        mean, variance = corrected(mean, variance)
    else:
        mean, variance = jax.lax.platform_dependent(
            mean, variance, cpu=corrected_if_needed, default=corrected
        )
    return Moments(count, jnp.squeeze(mean, axes), jnp.squeeze(variance, axes))


def _spread(vector: Any, shape: tuple[int, ...], axis: int) -> Any:
    """A vector of channels in the shape of the inputs, one axis after the other, as `summed` in reverse."""
    vector = along(vector, len(shape), axis)
    for a in reduction_axes(len(shape), axis):
        vector = jnp.broadcast_to(vector, (*shape[: a + 1], *vector.shape[a + 1 :]))
    return vector
