"""Moments of one batch: masked, per channel, and merged."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_bn.errors import KerasBNError


class Moments(NamedTuple):
    """Count, mean and variance of each channel of a batch.

    `count` has shape () if every channel has the same number of values, and (channels,) otherwise. A number
    that is known before the step may be a float. `mean` and `variance` have shape (channels,). The variance
    is the biased one, divided by the count. The batch is normalized by it. All three have the dtype of the
    statistics.
    """

    count: Any
    mean: Any
    variance: Any


def reduction_axes(rank: int, kept: int | tuple[int, ...]) -> list[int]:
    """The axes that moments are taken over: all but the channel axis, or all but several.

    >>> reduction_axes(4, -1)
    [0, 1, 2]
    """
    kept = (kept,) if isinstance(kept, int) else kept
    return [a for a in range(rank) if a not in {k % rank for k in kept}]


def along(statistic: Any, rank: int, kept: int | tuple[int, ...]) -> Any:
    """A statistic with one axis for each kept one, in order, made to broadcast to a tensor of `rank` axes."""
    for a in reduction_axes(rank, kept):
        statistic = ops.expand_dims(statistic, a)
    return statistic


def aligned_mask(mask: Any, shape: tuple[int | None, ...], axis: int) -> Any:
    """A boolean mask of the inputs' rank, each of its axes as long as the inputs' or of length 1.

    A mask with as many axes as the inputs is taken as it is. One with fewer has the first of the axes

    - of `shape[:-1]`, as Keras passes masks from layer to layer and as its own layer reads them,
    - or else of those that are not the channels: (batch, time) fits (batch, channels, time) with axis=1.

    Compared with NumPy, which aligns from the right, masks are aligned from the left.

    Args:
        mask: Boolean tensor.
        shape: Shape of the inputs, with None for an unknown length.
        axis: Channel axis of the inputs.

    Raises:
        KerasBNError: If the mask fits in neither way, or if it has fewer axes than `shape[:-1]` and fits in
            both with different meanings.
    """
    rank = len(shape)
    axis %= rank
    given = tuple(mask.shape)
    readings = [given]
    if len(given) < rank:
        padded = given + (1,) * (rank - 1 - len(given))
        readings = [(*padded, 1), (*padded[:axis], 1, *padded[axis:])]
    fitting = [reading for reading in readings if _fits(reading, shape)]
    if not fitting:
        raise KerasBNError(
            f"A mask of shape {given} does not fit inputs of shape {tuple(shape)} with channels on axis "
            f"{axis}: give one that broadcasts to the inputs, one of the shape of inputs[..., 0], or one "
            f"with the first of the axes that are not the channels."
        )
    if len(given) < rank - 1 and fitting[0] != fitting[-1]:
        raise KerasBNError(
            f"A mask of shape {given} can be read in two ways for inputs of shape {tuple(shape)} with "
            f"channels on axis {axis}; give it {rank} axes, with a length of 1 where it is to be broadcast."
        )
    if len(given) < rank:
        inserted = axis if fitting[0] != readings[0] else rank - 1
        for _ in range(rank - 1 - len(given)):
            mask = ops.expand_dims(mask, -1)
        mask = ops.expand_dims(mask, inserted)
    return ops.cast(mask, "bool")


def _fits(mask_shape: tuple[int | None, ...], shape: tuple[int | None, ...]) -> bool:
    return len(mask_shape) == len(shape) and all(
        length in (1, None) or expected in (length, None)
        for length, expected in zip(mask_shape, shape, strict=True)
    )


def summed(x: Any, axes: list[int]) -> Any:
    """The sum over `axes`, which keep a length of 1, one axis at a time.

    Long sums in single precision lose digits. Short sums of short sums do not, and in TensorFlow, which sums
    row after row, they are faster as well.
    """
    for a in reversed(axes):
        x = ops.sum(x, a, keepdims=True)
    return x


def squared_difference(x: Any, y: Any) -> Any:
    """(x - y)², in one pass over memory where the backend has it; Keras has no such operation."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.math.squared_difference(x, y)
    return ops.square(x - y)


def value_count(x: Any, axes: list[int], mask: Any = None) -> Any:
    """Number of elements of `x` reduced per output, in the dtype of `x`.

    Without a mask it is a scalar; with one it counts the values under True and keeps a length of 1 on `axes`.
    """
    shape, count = ops.shape(x), 1
    for a in axes:
        count = count * shape[a]
    count = ops.cast(count, x.dtype)
    if mask is None:
        return count
    # A mask may have a length of 1 where the inputs are longer.
    repeats = count / ops.maximum(value_count(ops.cast(mask, x.dtype), axes), 1)
    return summed(ops.cast(mask, x.dtype), axes) * repeats


def batch_moments(x: Any, kept: int | tuple[int, ...], mask: Any = None) -> Moments:
    """Count, mean and biased variance of each channel of `x`, differentiable with respect to `x`.

    With d = x - k for a constant k near the mean: mean = k + E[d], variance = E[d²] - E[d]². The shift makes
    this safe: nothing cancels when the mean is large beside the standard deviation, and the rounding of k is
    taken out again.

    Args:
        x: Floating-point tensor of rank 2 or more, in the dtype of the statistics.
        kept: The channel axis, or several axes in increasing order. The results have these axes.
        mask: The result of `aligned_mask`. Only values under True count. Values under False have no
            influence, not even NaN.

    Returns:
        `Moments`. Where the count is zero, mean and variance are 0.
    """
    axes = reduction_axes(len(x.shape), kept)
    count = value_count(x, axes, mask)
    if mask is not None:
        x = ops.where(mask, x, 0)
    divisor = ops.maximum(count, 1)
    shift = ops.stop_gradient(summed(x, axes) / divisor)
    centred = x - shift
    if mask is not None:
        centred = ops.where(mask, centred, 0)
    offset = summed(centred, axes) / divisor
    variance = ops.maximum(summed(ops.square(centred), axes) / divisor - ops.square(offset), 0)
    mean = ops.squeeze(shift + offset, axes)
    if mask is not None:
        count = ops.broadcast_to(ops.squeeze(count, axes), ops.shape(mean))
    return Moments(count, mean, ops.squeeze(variance, axes))


def merged(moments: Moments) -> Moments:
    """Moments of the union of several sets, given theirs stacked along a first axis.

    The merge of Chan, Golub and LeVeque (1979): mean = Σ n_i mean_i / n and variance = Σ n_i (variance_i +
    (mean_i - mean)²) / n. A set without values has no influence.
    """
    total = ops.sum(moments.count, 0)
    share = moments.count / ops.maximum(total, 1)
    mean = ops.sum(share * moments.mean, 0)
    variance = ops.sum(share * (moments.variance + ops.square(moments.mean - mean)), 0)
    return Moments(total, mean, variance)
