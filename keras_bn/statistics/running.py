"""Moving averages of batch statistics: exponential or cumulative."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_bn.statistics.moments import Moments


def unbiased(variance: Any, count: Any) -> Any:
    """The variance times m / (m - 1) for m values per channel (1502.03167, section 3.1).

    With one value there is nothing to correct: the variance, zero then, is returned as it is.
    """
    return variance * (count / (max(count - 1, 1) if isinstance(count, float) else ops.maximum(count - 1, 1)))


def update(
    moving_mean: keras.Variable,
    moving_variance: keras.Variable,
    moments: Moments,
    momentum: float | None,
    batches_seen: keras.Variable | None,
    unbiased_variance: bool,
    averaged_deviation_epsilon: float | None = None,
) -> None:
    """Move the averages towards a batch's moments. A channel without a value in the batch keeps its averages.

    With weight = 1 - momentum, or 1 / (n + 1) after n batches for momentum None:

        average = average * (1 - weight) + moment * weight

    Args:
        moving_mean: Variable in the shape of the moments.
        moving_variance: Variable in the shape of the moments.
        moments: Moments of the batch, with the biased variance.
        momentum: Fraction of the old value that is kept, or None for the cumulative average.
        batches_seen: Integer variable that counts the batches that had a value. For the cumulative average it
            has the shape of the moments and counts for each element.
        unbiased_variance: If True, the batch's variance times m / (m - 1) is averaged.
        averaged_deviation_epsilon: If given, sqrt(variance + epsilon) is averaged instead of the variance.
    """
    count, mean, variance = (v if isinstance(v, float) else ops.stop_gradient(v) for v in moments)
    if unbiased_variance:
        variance = unbiased(variance, count)
    if momentum is not None:
        weight = 1 - momentum
    else:
        assert batches_seen is not None
        weight = 1 / (ops.cast(batches_seen.value, moving_mean.dtype) + 1)

    def moved(old: Any, new: Any) -> Any:
        return old * (1 - weight) + new * weight

    new_mean = moved(moving_mean.value, mean)
    if averaged_deviation_epsilon is None:
        new_variance = moved(moving_variance.value, variance)
    else:
        old, new = (ops.sqrt(v + averaged_deviation_epsilon) for v in (moving_variance.value, variance))
        new_variance = ops.maximum(ops.square(moved(old, new)) - averaged_deviation_epsilon, 0)
    seen = count > 0
    if seen is not True:
        # Where nothing was seen, the averages stay as they are to the last bit.
        new_mean = ops.where(seen, new_mean, moving_mean.value)
        new_variance = ops.where(seen, new_variance, moving_variance.value)
    moving_mean.assign(new_mean)
    moving_variance.assign(new_variance)
    if batches_seen is not None:
        counted = seen if len(batches_seen.shape) else ops.any(seen)
        batches_seen.assign(batches_seen.value + ops.cast(counted, batches_seen.dtype))
