"""Whether data is likely to be what statistics should come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_bn.statistics.population import PopulationMoments

# Data in 0 to 255 where a model was trained on 0 to 1 is off by 255, in -1 to 1 by 127; what augmentation,
# another camera or another domain do to the first layer stays far below this.
_OTHER_SCALE = 20.0
# Relative to the square of the mean: the variance that rounding in float32 gives to a constant is below it.
_CONSTANT = 1e-10


class Counted:
    """An iterable of batches that counts the examples.

    Attributes:
        examples: how many there were, once it was read to the end.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data
        self.examples = 0

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for batch in self._data:
            leaf = next(x for x in keras.tree.flatten(batch) if x is not None)
            count += int(leaf.shape[0])
            yield batch
        self.examples = count


def snapshot(layers: Iterable[Any]) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """The moving mean and variance of each layer as they are now."""
    return {layer: (_array(layer.moving_mean), _array(layer.moving_variance)) for layer in layers}


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable), float)


def doubts(
    found: Mapping[Any, PopulationMoments],
    before: Mapping[Any, tuple[np.ndarray, np.ndarray]],
    examples: int,
) -> list[str]:
    """Reasons to doubt that the data is suitable, a sentence each.

    Args:
        found: the moments of the inputs of each layer over the data, in the order of the network.
        before: the moving mean and variance of each layer.
        examples: how many examples the data has.
    """
    found = {layer: moments for layer, moments in found.items() if moments.count}
    result = []
    if examples == 1:
        result.append(
            "The data is a single example, which says nothing of how examples differ; pass a few hundred, "
            "and mind that the first axis of an array is that of the examples."
        )
    few = [layer.name for layer, moments in found.items() if moments.count < moments.channels]
    if few and examples > 1:
        result.append(
            f"{few[0]!r}{f' and {len(few) - 1} more' if len(few) > 1 else ''} got fewer values per channel "
            f"than there are channels; use more than these {examples} examples."
        )
    if found:
        layer, moments = next(iter(found.items()))
        mean, variance = before[layer]
        untouched = not mean.any() and bool((variance == 1).all())
        factor = _scale(moments, mean, np.asarray(variance))
        if not untouched and not 1 / _OTHER_SCALE < factor < _OTHER_SCALE:
            result.append(
                f"The inputs of {layer.name!r}, the first layer, deviate {factor:.3g} times as much as its "
                "statistics say; is the data scaled as in training (0 to 1, or 0 to 255)?"
            )
    return result


def _scale(moments: PopulationMoments, mean: np.ndarray, variance: np.ndarray) -> float:
    """How many times as much the median channel deviates as its statistics say.

    Channels that are constant, on the data or by the statistics, say nothing: their scale is that of
    rounding. Epsilon is left out, since it would hide data on a smaller scale.
    """
    varies = (moments.variance > _CONSTANT * moments.mean**2) & (variance > _CONSTANT * mean**2)
    if not varies.any():
        return 1.0
    return float(np.sqrt(np.median(moments.variance[varies] / variance[varies])))
