"""The inputs of a model's normalizations, observed by replacing the `call` of each while the model runs.

So it works wherever a layer is called: in nested models, in custom layers, in wrappers, several times,
with a mask, and on every backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_bn.errors import KerasBNError
from keras_bn.statistics.moments import Moments, merged
from keras_bn.statistics.population import PopulationMoments
from keras_bn.surgery._program import Step, program
from keras_bn.surgery._segment import Output, Segment, Sight, Value, inputs_of, layers_in
from keras_bn.surgery._state import state_kept
from keras_bn.surgery.normalizations import why_not_called


class Observer:
    """A model with an eye on some of its normalizations, all others being in inference mode.

    Args:
        model: a built model. It is left as it was.
        layers: the layers to observe; their `axis` is that of the channels.
        example: one batch of inputs, in the structure of all.
        output: what the observed layers give meanwhile, such as `normalized_by_batch`; None for what they
            give at inference.
        sampled: keep some of the inputs of every layer, of the first batch, for `samples`.
        compiles: False to compile nothing, which is faster for a few batches.

    Attributes:
        unseen: why a layer was not observed, by layer, once `moments` was called: it is never called, or
            where it is called its inputs cannot be seen.
        largest: the bytes of the largest inputs of a layer in one batch, by step, once `order` was called.
        stepwise: whether `order` had to compile nothing to see the inputs of all layers.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: Sequence[keras.Layer],
        example: Any,
        output: Output | None = None,
        sampled: bool = False,
        compiles: bool = True,
    ) -> None:
        self._model, self._layers = model, list(layers)
        self._options: dict[str, Any] = {"output": output, "sampled": sampled, "compiles": compiles}
        self.program = program(model, example)
        self.unseen: dict[keras.Layer, str] = {}
        self.samples: dict[keras.Layer, NDArray[np.floating]] = {}
        self.largest: dict[Step, int] = {}
        self.stepwise = False
        self._running: Segment | None = None

    def moments(self, data: Iterable[Any]) -> dict[keras.Layer, PopulationMoments]:
        """The moments of the inputs of every layer over `data`, pooled over all calls of a layer.

        One batch is held at a time. Layers that are `unseen` have no entry.

        Raises:
            KerasBNError: if the inputs of a layer are not finite.
        """
        result: dict[keras.Layer, PopulationMoments] = {}
        segment = None
        with state_kept(self._model):
            for batch in data:
                values = inputs_of(self.program, batch)
                if segment is None:
                    segment, sights = self._started(values)
                    self.samples = {s.layer: s.sample for s in sights if s.sample is not None}
                else:
                    sights, _ = segment(values)
                pool(sights, result)
        return result

    def sights_of(self, batch: Any) -> list[Sight]:
        """The observations of one batch, by a function that is compiled once, for `pool`.

        The weights and statistics of the model must not change between calls.
        """
        with state_kept(self._model):
            return self._sights(batch)

    def add(self, data: Iterable[Any], into: dict[keras.Layer, PopulationMoments]) -> None:
        """Add the moments of batches to those of the layers, as `sights_of` and `pool` do batch by batch."""
        with state_kept(self._model):
            for batch in data:
                pool(self._sights(batch), into)

    def _sights(self, batch: Any) -> list[Sight]:
        values = inputs_of(self.program, batch)
        if self._running is None:
            self._running, sights = self._started(values)
        else:
            sights, _ = self._running(values)
        return sights

    def order(self, batch: Any) -> dict[Step, list[keras.Layer]]:
        """The observed layers that each step of the program calls, in the order of the calls."""
        result: dict[Step, list[keras.Layer]] = {}
        steps = self.program.steps
        observed = {id(layer) for layer in self._layers}
        inside = {step: [x for x in layers_in(step) if id(x) in observed] for step in steps}
        if all(layers in ([], [step.operation]) for step, layers in inside.items()):
            return {step: layers for step, layers in inside.items() if layers}
        with state_kept(self._model):
            segment, sights = self._started(inputs_of(self.program, batch))
        self.stepwise = segment.stepwise
        for sight in sights:
            result.setdefault(sight.step, []).append(sight.layer)
            self.largest[sight.step] = max(self.largest.get(sight.step, 0), _bytes(sight.rows))
        return result

    def _started(self, values: dict[int, Value]) -> tuple[Segment, list[Sight]]:
        """The segment that observes all layers that can be, and what it saw of a first batch."""
        try:
            segment = self._segment(self._layers)
            sights, _ = segment(values)
        except KerasBNError:
            raise
        except Exception:  # a layer hides its inputs in a way of its backend; those that do are left out
            self._set_aside(values)
            segment = self._segment([layer for layer in self._layers if layer not in self.unseen])
            sights, _ = segment(values)
        seen = {id(sight.layer) for sight in sights}
        missing = [x for x in self._layers if id(x) not in seen and x not in self.unseen]
        if missing and not segment.stepwise and keras.backend.backend() != "torch":
            # What a compiled function calls that was compiled before shows itself step by step only.
            patient = self._segment([layer for layer in self._layers if layer not in self.unseen])
            patient.run_step_by_step()
            again, _ = patient(values)
            if len({id(sight.layer) for sight in again}) > len(seen):
                segment, sights = patient, again
                seen = {id(sight.layer) for sight in sights}
        self.unseen |= {
            layer: why_not_called(layer, self.program.model) for layer in missing if id(layer) not in seen
        }
        return segment, sights

    def _segment(self, layers: Sequence[keras.Layer]) -> Segment:
        wanted = {id(layer) for layer in layers}
        last = max(
            (
                index
                for index, step in enumerate(self.program.steps)
                if any(id(layer) in wanted for layer in layers_in(step))
            ),
            default=-1,
        )
        return Segment(self.program, self.program.steps[: last + 1], layers, watch=True, **self._options)

    def _set_aside(self, values: dict[int, Value]) -> None:
        """Find the layers whose inputs cannot be seen, each step of the program tried on its own."""
        observed = {id(layer) for layer in self._layers}
        for step in self.program.steps:
            layers = [layer for layer in layers_in(step) if id(layer) in observed]
            plain = Segment(self.program, [step], [], keep=step.targets)
            plain.run_step_by_step()
            _, results = plain(values)
            if layers and layers != [step.operation]:
                try:
                    Segment(self.program, [], layers, observed=[step])(values)
                except Exception:  # what a backend raises for a value out of its loop or function
                    kind = type(step.operation).__name__
                    reason = f"is called where {kind} hides its inputs, in a loop or a compiled function"
                    self.unseen |= dict.fromkeys(layers, reason)
            values = values | results


def pool(sights: Iterable[Sight], into: dict[keras.Layer, PopulationMoments]) -> None:
    """Add what was seen of one batch to the moments of each layer.

    Raises:
        KerasBNError: if the inputs of a layer are not finite.
    """
    for sight in sights:
        layer, rows = sight.layer, sight.rows
        if not (np.isfinite(rows.mean).all() and np.isfinite(rows.variance).all()):
            raise KerasBNError(
                f"The inputs of {layer.name!r} are not finite on this data, so they have no statistics; "
                "check the scale of the data and the weights of the layers before it, or use a wider dtype."
            )
        if layer not in into:
            into[layer] = PopulationMoments(rows.mean.shape[-1])
        into[layer].update_rows(*rows)


def normalized_by_batch(layer: Any, inputs: Any, rows: Moments) -> Any:
    """The outputs of BN in training, for any class of layer."""
    _, mean, variance = merged(rows)
    outputs = ops.batch_normalization(
        ops.cast(inputs, mean.dtype),
        mean,
        variance,
        axis=layer.axis,
        offset=ops.cast(layer.beta, mean.dtype) if layer.center else None,
        scale=ops.cast(layer.gamma, mean.dtype) if layer.scale else None,
        epsilon=layer.epsilon,
    )
    return ops.cast(outputs, inputs.dtype)


def _bytes(rows: Moments) -> int:
    """Of the values that have these moments, in float32."""
    count = np.broadcast_to(rows.count, (len(rows.mean), 1))
    return int(4 * count.sum() * rows.mean.shape[-1])
