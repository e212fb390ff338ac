"""Moments of one batch: masked, per channel, and merged across replicas."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_bn.errors import KerasBNError


class Moments(NamedTuple):
    """Count, mean and variance of each channel of a batch.

    `count` has shape () when every channel has as many values, else (channels,). `mean` and `variance` have
    shape (channels,). The variance is the biased one, divided by the count: it is what the batch is
    normalized by. All three have the dtype the statistics are kept in.
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

    A mask with as many axes as the inputs is taken as it is. One with fewer is aligned, from the left, with
    the axes that are not the channels: (batch, time) fits (batch, time, channels) with axis=-1 and
    (batch, channels, time) with axis=1. This is not NumPy's rule, which aligns from the right.

    Raises KerasBNError if an axis of the mask fits neither the inputs nor 1.
    """
    rank = len(shape)
    axis %= rank
    given = tuple(mask.shape)
    target = shape if len(given) == rank else tuple(shape[a] for a in reduction_axes(rank, axis))
    fits = len(given) <= len(target) and all(
        length in (1, None) or expected in (length, None)
        for length, expected in zip(given, target, strict=False)
    )
    if not fits:
        raise KerasBNError(
            f"A mask of shape {given} does not fit inputs of shape {tuple(shape)} with channels on axis "
            f"{axis}: give one that broadcasts to the inputs, or one with the first of the other axes."
        )
    if len(given) < rank:
        for _ in range(rank - 1 - len(given)):
            mask = ops.expand_dims(mask, -1)
        mask = ops.expand_dims(mask, axis)
    return ops.cast(mask, "bool")


def value_count(x: Any, axes: list[int], dtype: str) -> Any:
    """How many values of `x` one element of its reduction over `axes` is made of, a scalar of `dtype`."""
    shape = ops.shape(x)
    count = 1
    for a in axes:
        count = count * shape[a]
    return ops.cast(count, dtype)


def summed(x: Any, axes: list[int]) -> Any:
    """The sum over `axes`, which keep a length of 1, one axis at a time.

    Long sums in single precision lose digits, short ones of short ones do not; in TensorFlow, which sums row
    after row, they are faster as well.
    """
    for a in reversed(axes):
        x = ops.sum(x, a, keepdims=True)
    return x


def values_counted(x: Any, axes: list[int], mask: Any = None) -> Any:
    """How many values of `x` count, in its dtype: a scalar, or with a mask of length 1 along `axes`."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    count = value_count(x, axes, dtype)
    if mask is None:
        return count
    # A mask may be of length 1 where the inputs are longer.
    return summed(ops.cast(mask, dtype), axes) * (count / ops.maximum(value_count(mask, axes, dtype), 1))


def batch_moments(x: Any, kept: int | tuple[int, ...], mask: Any = None) -> Moments:
    """Count, mean and biased variance of each channel of `x`, differentiable with respect to `x`.

    With d = x - k for a constant k near the mean: mean = k + E[d], variance = E[d²] - E[d]². The shift makes
    this safe: nothing cancels when the mean is large beside the standard deviation, and the rounding of k is
    taken out again.

    Args:
        x: floating-point tensor of any rank >= 2, in the dtype that the statistics are to have.
        kept: the channel axis, or several axes in increasing order: the results have these.
        mask: what `aligned_mask` returns; only values under True count. What is under False has no influence,
            not even if it is NaN.

    Returns:
        `Moments`. Where the count is zero, mean and variance are 0.
    """
    axes = reduction_axes(len(x.shape), kept)
    count = values_counted(x, axes, mask)
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

    The merge of Chan, Golub and LeVeque (1979): mean = Σ n_i mean_i / n and
    variance = Σ n_i (variance_i + (mean_i - mean)²) / n. A set without values has no influence.
    """
    total = ops.sum(moments.count, 0)
    share = moments.count / ops.maximum(total, 1)
    mean = ops.sum(share * moments.mean, 0)
    variance = ops.sum(share * (moments.variance + ops.square(moments.mean - mean)), 0)
    return Moments(total, mean, variance)


def across_replicas(moments: Moments) -> Moments:
    """Moments of all replicas' batches together, with one all-reduce; TensorFlow only.

    Each replica writes count, mean and variance into its own row of a table of zeros, so that the sum of the
    tables holds everyone's and can be merged without cancellation. Outside a replica context, or with a
    single replica, the moments are returned as they are.
    """
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return moments
    own = tf.stack([tf.broadcast_to(v, tf.shape(moments.mean)) for v in moments])
    row = tf.one_hot(replica.replica_id_in_sync_group, replica.num_replicas_in_sync, dtype=own.dtype)
    # where, not a product with zero: a NaN of one replica must not reach the rows of the others twice.
    table = tf.where(row[:, None, None] > 0, own[None], tf.zeros((), own.dtype))
    table = replica.all_reduce(tf.distribute.ReduceOp.SUM, table)
    return merged(Moments(table[:, 0], table[:, 1], table[:, 2]))
