"""Moving averages of batch statistics: exponential or cumulative."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_bn._keras import in_stateless_scope, storage_of
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
    count, mean, variance = moments
    if unbiased_variance:
        variance = unbiased(variance, count)
    if momentum is not None:
        weight = 1 - momentum
    else:
        assert batches_seen is not None
        weight = 1 / (ops.cast(batches_seen.value, moving_mean.dtype) + 1)

    seen = count > 0
    if averaged_deviation_epsilon is None:
        _move([(moving_mean, mean), (moving_variance, variance)], weight, seen)
    else:
        _move([(moving_mean, mean)], weight, seen)
        old, new = (ops.sqrt(v + averaged_deviation_epsilon) for v in (moving_variance.value, variance))
        average = ops.square(old * (1 - weight) + new * weight) - averaged_deviation_epsilon
        _assign_where(seen, moving_variance, ops.maximum(average, 0))
    if batches_seen is not None:
        counted = seen if len(batches_seen.shape) else ops.any(seen)
        batches_seen.assign(batches_seen.value + ops.cast(counted, batches_seen.dtype))


def _move(pairs: list[tuple[keras.Variable, Any]], weight: Any, seen: Any) -> None:
    """Move each average towards the moment beside it."""
    if seen is True and keras.backend.backend() == "torch" and not in_stateless_scope():
        # The same in one operation and in place, which takes a quarter of the time in a small layer.
        for average, moment in pairs:
            storage_of(average).detach().lerp_(moment, weight)
    else:
        for average, moment in pairs:
            _assign_where(seen, average, average.value * (1 - weight) + moment * weight)


def _assign_where(seen: Any, average: keras.Variable, value: Any) -> None:
    """Where nothing was seen, the average stays as it is to the last bit."""
    value = value if seen is True else ops.where(seen, value, average.value)
    average.assign(ops.stop_gradient(value))
