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
    dtype = inputs.dtype if inputs.dtype.itemsize == 2 else x.dtype
    y, moments = _normalized(x, gamma, beta, mask, epsilon, axis % x.ndim, dtype)
    return y, Moments(*map(jax.lax.stop_gradient, moments))


@partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6))
def _normalized(
    x: Any, gamma: Any, beta: Any, mask: Any, epsilon: float, axis: int, dtype: Any
) -> tuple[Any, Moments]:
    """Outputs in `dtype`, and moments.

    Few values of 16 bits take x * scale + offset on a CPU where no mean is large. XLA would divide them
    between threads for (x - mean) * scale + beta, which takes longer than to choose.
    """
    spread = partial(along, rank=x.ndim, kept=axis)

    def with_moments(moments: Moments) -> tuple[Any, Moments]:
        mean, scale = moments.mean, gamma / jnp.sqrt(moments.variance + epsilon)
        return ((x - spread(mean)) * spread(scale) + spread(beta)).astype(dtype), moments

    def near_zero(mean: Any, variance: Any) -> tuple[Any, Any, Any]:
        scale = gamma / jnp.sqrt(variance + epsilon)
        return (x * spread(scale) + spread(beta - mean * scale)).astype(dtype), mean, variance

    def anywhere(mean: Any, variance: Any) -> tuple[Any, Any, Any]:
        y, (_, mean, variance) = with_moments(_moments(x, axis, epsilon))
        return y, mean, variance

    def chosen(mean: Any, variance: Any) -> tuple[Any, Any, Any]:
        return jax.lax.cond(_any_large(mean, variance, epsilon), anywhere, near_zero, mean, variance)

    if mask is not None:
        return with_moments(batch_moments(x, axis, mask))
    if dtype == x.dtype or not _is_small(x):
        return with_moments(_moments(x, axis, epsilon))
    count, mean, variance = _uncorrected_moments(x, axis)
    y, mean, variance = jax.lax.platform_dependent(mean, variance, cpu=chosen, default=anywhere)
    return y, Moments(count, mean, variance)


@_normalized.defjvp
def _derivative(
    epsilon: float, axis: int, dtype: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> Any:
    """dy = scale * (dx - mean(dx) - z * mean(z * dx)) + z * dgamma + dbeta, with z the normalized x.

    z is written as (x - mean) / deviation, which is not kept for the transposed pass, and vectors of channels
    are multiplied first, so that the sums of that pass are those of dy and of (x - mean) * dy.
    """
    x, gamma, beta, mask = primals
    dx, dgamma, dbeta, _ = tangents
    y, moments = _normalized(x, gamma, beta, mask, epsilon, axis, dtype)
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
    return (y, moments), (dy.astype(dtype), dmoments)


def _moments(x: Any, axis: int, epsilon: float) -> Moments:
    """As `batch_moments` without a mask, in two passes where a third would change nothing.

    The variance is taken about the mean as it was rounded, and the mean of what is left corrects both. That
    has an effect where the mean is large beside the deviation. A CPU takes another pass for it, which is left
    out where no channel needs it. Other devices have the sum in the same pass, and would wait for the choice.
    """
    axes = reduction_axes(x.ndim, axis)
    count, mean, variance = _uncorrected_moments(x, axis)

    def corrected(mean: Any, variance: Any) -> tuple[Any, Any]:
        rest = jnp.squeeze(summed(x - along(mean, x.ndim, axis), axes), axes) / jnp.maximum(count, 1)
        return mean + rest, jnp.maximum(variance - jnp.square(rest), 0)

    def corrected_if_needed(mean: Any, variance: Any) -> tuple[Any, Any]:
        needed = _any_large(mean, variance, epsilon)
        return jax.lax.cond(needed, corrected, lambda *same: same, mean, variance)

    if _is_small(x):
        return Moments(count, *corrected(mean, variance))
    return Moments(
        count, *jax.lax.platform_dependent(mean, variance, cpu=corrected_if_needed, default=corrected)
    )


def _uncorrected_moments(x: Any, axis: int) -> Moments:
    """The variance about the mean as it was rounded."""
    axes = reduction_axes(x.ndim, axis)
    count = value_count(x, axes)
    divisor = jnp.maximum(count, 1)
    mean = summed(x, axes) / divisor
    variance = summed(jnp.square(x - mean), axes) / divisor
    return Moments(count, jnp.squeeze(mean, axes), jnp.squeeze(variance, axes))


def _any_large(mean: Any, variance: Any, epsilon: float) -> Any:
    """Whether a mean is more than 32 deviations from zero."""
    return jnp.any(jnp.square(mean) > 2**10 * (variance + epsilon))


def _is_small(x: Any) -> bool:
    size = math.prod(x.shape)
    return isinstance(size, int) and size < _SMALL_SIZE


def _spread(vector: Any, shape: tuple[int, ...], axis: int) -> Any:
    """A vector of channels in the shape of the inputs, one axis after the other, as `summed` in reverse."""
    vector = along(vector, len(shape), axis)
    for a in reduction_axes(len(shape), axis):
        vector = jnp.broadcast_to(vector, (*shape[: a + 1], *vector.shape[a + 1 :]))
    return vector
