"""Moments of the inputs of several layers, in one pass over the data."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_bn.errors import KerasBNError
from keras_bn.statistics.batches import Batches
from keras_bn.statistics.moments import along
from keras_bn.statistics.population import PopulationMoments, device_moments


@dataclass(frozen=True)
class Tap:
    """A layer whose input is to be measured, while it passes that on.

    Attributes:
        layer: has a `moving_mean`, as long as there are channels.
        axis: the channel axis of its input.
        bias: added to what it passes on, `(channels,)`; None for nothing.
    """

    layer: keras.Layer
    axis: int
    bias: np.ndarray | None = None


class Calibration(NamedTuple):
    """What one pass over the data gives: the moments for each tap, the number of batches, the first batch."""

    moments: list[PopulationMoments]
    batches: int
    first_batch: Any


def calibrate(model: keras.Model, taps: Sequence[Tap], data: Batches, progress: bool) -> Calibration:
    """Moments of what reaches each tapped layer, in one pass over the data.

    Args:
        model: run in inference mode.
        taps: built layers of it, nested or not.
        data: batches of inputs. One batch is held at a time.
        progress: whether to show a progress bar on stderr.

    Raises:
        KerasBNError: if the moments are not finite, or a layer is never reached.
    """
    found = [PopulationMoments(tap.layer.moving_mean.shape[0]) for tap in taps]
    first_batch, batches = None, 0
    with _observed(taps) as taken:

        @tf.function(reduce_retracing=True, autograph=False)
        def step(inputs: Any) -> Any:
            taken.clear()
            model(inputs, training=False)
            return list(taken)

        for inputs in tqdm(
            data, "calibrating", data.total, unit="batch", disable=not progress, file=sys.stderr
        ):
            first_batch = inputs if first_batch is None else first_batch
            batches += 1
            for index, count, mean, variance in step(inputs):
                if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
                    raise KerasBNError(
                        f"What reaches {taps[int(index)].layer.name!r} overflows on this data; check "
                        "its scale, or use a wider dtype."
                    )
                found[int(index)].update_moments(int(count), mean, variance)
    for tap, moments in zip(taps, found, strict=True):
        if not moments.count:
            raise KerasBNError(f"No value of the data reaches {tap.layer.name!r}: its mask leaves nothing.")
    return Calibration(found, batches, first_batch)


@contextmanager
def _observed(taps: Sequence[Tap]) -> Iterator[list[Any]]:
    """While inside, each tapped layer passes its input on and appends (index, moments) to the list."""
    taken: list[Any] = []

    def observer(index: int, tap: Tap) -> Any:
        def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
            moments = device_moments(inputs, tap.axis, mask)
            taken.append((index, *moments))
            if tap.bias is None:
                return inputs
            bias = tf.cast(tap.bias, inputs.dtype)
            return inputs + along(bias, len(inputs.shape), tap.axis)

        return call

    try:
        for index, tap in enumerate(taps):
            tap.layer.call = observer(index, tap)
        yield taken
    finally:
        for tap in taps:
            vars(tap.layer).pop("call", None)
