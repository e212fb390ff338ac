"""The layers inside a step that cannot be cut, set one after the other in a single run on all of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_bn.statistics.moments import Moments
from keras_bn.statistics.population import PopulationMoments
from keras_bn.surgery._compiled import as_tensor
from keras_bn.surgery._program import Step
from keras_bn.surgery._segment import Segment, Sight, Value
from keras_bn.surgery.observe import Observer, pool

Found: TypeAlias = "dict[keras.Layer, PopulationMoments]"

# A run takes several times the memory of the largest inputs of a BN layer in it.
_SHARE = 4


class Together:
    """The steps of a program that call several layers, each of them once and in no other step.

    Args:
        observer: of the model.
        order: what `observer.order` gives.

    Attributes:
        steps: these steps.
    """

    def __init__(self, observer: Observer, order: dict[Step, list[keras.Layer]]) -> None:
        calls = [layer for layers in order.values() for layer in layers]
        self.steps = {
            step
            for step, layers in order.items()
            if len(layers) > 1 and all(calls.count(layer) == 1 for layer in layers)
        }
        self._observer, self._order = observer, order

    def fits(self, step: Step, batches: int, memory_limit: float) -> bool:
        """Whether a step can be run on so many batches like the example at once."""
        return _SHARE * batches * self._observer.largest[step] <= memory_limit

    def run(
        self, step: Step, batches: Sequence[dict[int, Value]], update: Callable[[Found], None]
    ) -> Found | None:
        """Run a step once; each layer gets its statistics from its inputs before it computes its output.

        Args:
            batches: the values that the step takes, of each batch.
            update: sets the statistics of layers to the moments that it is given.

        Returns:
            The moments of the inputs of each layer, or None if the batches cannot be joined.
        """
        values = self._joined(step, batches)
        if values is None:
            return None
        found: Found = {}

        def settle(layer: Any, inputs: Any, rows: Moments) -> Any:
            own: Found = {}
            pool([Sight(step, layer, Moments(*map(ops.convert_to_numpy, rows)))], own)
            update(own)
            found.update(own)
            return type(layer).call(layer, inputs, training=False)

        segment = Segment(
            self._observer.program, [step], self._order[step], watch=True, output=settle, compiles=False
        )
        if self._observer.stepwise:
            segment.run_step_by_step()
        segment(values)
        return found

    def _joined(self, step: Step, batches: Sequence[dict[int, Value]]) -> dict[int, Value] | None:
        result: dict[int, Value] = {}
        for number in step.sources:
            shape = self._observer.program.shapes[number]
            if shape is not None and (not shape or shape[0] is not None):
                return None  # without an axis of examples, or for a fixed number of them
            values, masks = zip(*(batch[number] for batch in batches), strict=True)
            if not (_go_together(values) and _go_together(masks)):
                return None
            result[number] = _concatenated(values), _concatenated(masks)
        return result


def _go_together(parts: Sequence[Any]) -> bool:
    """Whether they are missing, or dense tensors that differ in the number of examples alone."""
    if all(part is None for part in parts):
        return True
    shapes = {tuple(part.shape[1:]) if hasattr(part, "__array__") and part.shape else None for part in parts}
    return len(shapes) == 1 and None not in shapes


def _concatenated(parts: Sequence[Any]) -> Any:
    if parts[0] is None or len(parts) == 1:
        return as_tensor(parts[0])
    return ops.concatenate(parts)
