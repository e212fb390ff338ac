"""Moving averages of batch statistics: exponential or cumulative."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_bn.statistics.moments import Moments


def unbiased(variance: Any, count: Any) -> Any:
    """The variance times m / (m - 1) for m values per channel (1502.03167, section 3.1).

    With one value there is nothing to correct: the variance, zero then, is returned as it is.
    """
    return variance * (count / ops.maximum(count - 1, 1))


def new_weight(momentum: float | None, batches_seen: Any, dtype: str) -> Any:
    """The weight of a new batch in the moving averages.

    Exponential: 1 - momentum, as Keras counts it (PyTorch calls this number momentum). Cumulative, for
    momentum None: 1 / (n + 1) after n batches, so that every batch weighs the same.
    """
    if momentum is None:
        return 1 / (ops.cast(batches_seen, dtype) + 1)
    return ops.convert_to_tensor(1 - momentum, dtype)


def moved(old: Any, new: Any, weight: Any) -> Any:
    """old * (1 - weight) + new * weight."""
    return old * (1 - weight) + new * weight


def _same(value: Any) -> Any:
    return value


def update(
    moving_mean: keras.Variable,
    moving_variance: keras.Variable,
    moments: Moments,
    momentum: float | None,
    batches_seen: keras.Variable | None,
    unbiased_variance: bool,
    to_averaged: Callable[[Any], Any] = _same,
    from_averaged: Callable[[Any], Any] = _same,
) -> None:
    """Move the averages towards a batch's moments; a batch without a single value leaves them alone.

    Args:
        moving_mean: variable in the shape of the moments.
        moving_variance: variable in the shape of the moments.
        moments: the batch's, with the biased variance.
        momentum: fraction of the old value that is kept, or None for the cumulative average.
        batches_seen: integer variable of shape (), needed for the cumulative average only; counted up.
        unbiased_variance: whether m / (m - 1) times the batch's variance is what is averaged.
        to_averaged: function of the variance that is averaged in its place, such as the deviation.
        from_averaged: its inverse.
    """
    count, mean, variance = (ops.stop_gradient(ops.convert_to_tensor(v)) for v in moments)
    weight = new_weight(momentum, batches_seen, moving_mean.dtype)
    if unbiased_variance:
        variance = unbiased(variance, count)
    new_mean = moved(moving_mean.value, mean, weight)
    new_variance = from_averaged(moved(to_averaged(moving_variance.value), to_averaged(variance), weight))
    # A channel that has seen no value keeps its averages to the last bit.
    moving_mean.assign(ops.where(count > 0, new_mean, moving_mean.value))
    moving_variance.assign(ops.where(count > 0, new_variance, moving_variance.value))
    if batches_seen is not None:
        batches_seen.assign(batches_seen.value + ops.cast(ops.max(count) > 0, batches_seen.dtype))
