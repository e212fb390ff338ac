"""A part of a program as one function, which observes the inputs of layers by replacing their `call`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_bn._keras import get_mask, set_mask
from keras_bn.errors import KerasBNError
from keras_bn.statistics.moments import Moments, reduction_axes
from keras_bn.statistics.population import row_moments
from keras_bn.surgery._cloning import layers_in as held_in
from keras_bn.surgery._compiled import (
    as_tensor,
    compiled,
    step_by_step,
    without_gradients,
)
from keras_bn.surgery._program import Program, Step
from keras_bn.surgery._replaced_calls import replaced_calls

# The outputs of a layer while it is observed, from the layer, its inputs, and the moments of each example.
Output: TypeAlias = Callable[[keras.Layer, Any, Moments], Any]

# A value of a program while it runs, and the mask that Keras hands on with it.
Value: TypeAlias = "tuple[Any, Any]"


@dataclass(frozen=True)
class Sight:
    """One call of an observed layer on one batch.

    Attributes:
        step: the step of the program that the layer was called in.
        rows: the moments of its inputs, example by example.
        sample: up to 512 rows of its inputs, `(rows, channels)`; None if not asked for.
    """

    step: Step
    layer: keras.Layer
    rows: Moments
    sample: Any = None


class Segment:
    """Some steps of a program as one function, compiled if it can be.

    Args:
        steps: what to run, in order.
        observed: what to run after that for the sake of the layers in it alone; what it gives is dropped.
        layers: the layers to observe.
        keep: the numbers of the values to return.
        watch: observe the layers in `steps` too.
        output: what an observed layer in `steps` gives; None for what it gives at inference.
        sampled: take samples too.
        compiles: False to run it as it stands.
    """

    def __init__(
        self,
        whole: Program,
        steps: Sequence[Step],
        layers: Sequence[keras.Layer],
        *,
        observed: Sequence[Step] = (),
        keep: Sequence[int] = (),
        watch: bool = False,
        output: Output | None = None,
        sampled: bool = False,
        compiles: bool = True,
    ) -> None:
        self._program, self._steps, self._observed = whole, list(steps), list(observed)
        self._layers, self._keep = list(layers), list(keep)
        self._watch, self._output, self._sampled = watch, output, sampled
        made = {target for step in self._steps for target in step.targets}
        needed = [n for step in [*self._steps, *self._observed] for n in step.sources] + self._keep
        self._inputs = list(dict.fromkeys(number for number in needed if number not in made))
        self._last = {n: i for i, step in enumerate(self._steps) for n in (*step.sources, *step.targets)}
        self._held = {*self._keep, *(n for step in self._observed for n in step.sources)}
        self._seen: list[tuple[Step, keras.Layer]] = []
        self._run = None if compiles else without_gradients(self._function)
        self.stepwise = False

    def __call__(self, values: dict[int, Value]) -> tuple[list[Sight], dict[int, Value]]:
        """Run on the values of one batch; returns what was seen, and the values to keep."""
        flat = [each for number in self._inputs for each in values[number]]
        records, kept = self._first(flat) if self._run is None else self._again(flat)
        sights = [
            Sight(step, layer, Moments(*map(_host, rows)), None if sample is None else _host(sample))
            for (step, layer), (*rows, sample) in zip(self._seen, records, strict=True)
        ]
        return sights, {n: (kept[2 * i], kept[2 * i + 1]) for i, n in enumerate(self._keep)}

    def run_step_by_step(self) -> None:
        """Compile nothing: every value inside every layer can then be seen."""
        self.stepwise, self._run = True, without_gradients(self._function)

    def _first(self, flat: list[Any]) -> Any:
        operations = [step.operation for step in [*self._steps, *self._observed]]
        try:
            self._run = compiled(self._function, operations, flat, self._shapes(flat))
            return self._run(flat)
        except KerasBNError:
            raise
        except Exception:
            # A loop or a compiled function inside hides its values, or a layer needs more than a trace. What
            # is wrong with the model itself is raised by the model itself now.
            self.run_step_by_step()
            return self._again(flat)

    def _again(self, flat: list[Any]) -> Any:
        assert self._run is not None
        with step_by_step() if self.stepwise else nullcontext():
            return self._run(flat)

    def _shapes(self, flat: list[Any]) -> list[tuple[int | None, ...]]:
        """The shapes of values and masks, with None where another batch may have another length."""
        result: list[tuple[int | None, ...]] = []
        for number, value, mask in zip(self._inputs, flat[::2], flat[1::2], strict=True):
            known, actual = self._program.shapes[number], () if value is None else tuple(value.shape)
            if known is None or len(known) != len(actual):
                shape = (None, *actual[1:])
            else:
                shape = tuple(a if a == k else None for a, k in zip(actual, known, strict=True))
            result.append(shape)
            result.append(() if mask is None else (*shape, *[None] * 9)[: len(mask.shape)])
        return result

    def _function(self, flat: list[Any]) -> tuple[list[Any], list[Any]]:
        values: dict[int, Any] = {}
        for number, value, mask in zip(self._inputs, flat[::2], flat[1::2], strict=True):
            values[number] = value
            if mask is not None:
                set_mask(value, mask)
        self._seen.clear()
        records: list[Any] = []
        for index, step in enumerate(self._steps):
            with self._watching(step, records, self._output) if self._watch else nullcontext():
                results = step.run([values[number] for number in step.sources])
            values.update(zip(step.targets, results, strict=True))
            for number in {*step.sources, *step.targets}:
                if self._last[number] == index and number not in self._held:
                    del values[number]
        for step in self._observed:
            alone = step.operation in self._layers
            with self._watching(step, records, _unchanged if alone else None):
                step.run([values[number] for number in step.sources])
        kept = [each for n in self._keep for each in (values[n], _mask_of(values[n]))]
        return records, kept

    @contextmanager
    def _watching(self, step: Step, records: list[Any], output: Output | None) -> Iterator[None]:
        inside = {id(layer) for layer in layers_in(step)}
        layers = [layer for layer in self._layers if id(layer) in inside]

        def watched(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
            def observe(inputs: Any, *args: Any, **kwargs: Any) -> Any:
                rows = row_moments(inputs, layer.axis, kwargs.get("mask"))
                self._seen.append((step, layer))
                records.append([*rows, _sample(inputs, layer.axis) if self._sampled else None])
                return call(inputs, *args, **kwargs) if output is None else output(layer, inputs, rows)

            return observe

        with replaced_calls(layers, watched):
            yield


def layers_in(step: Step) -> list[keras.Layer]:
    """The layers of a step: the one it calls and all inside that, also those that Keras does not track."""
    if step.layers is None:
        layer = step.operation
        inside = [each for _, each in held_in(layer)] if isinstance(layer, keras.Layer) else []
        step.layers = [layer, *inside] if isinstance(layer, keras.Layer) else []
    return step.layers


def inputs_of(whole: Program, batch: Any) -> dict[int, Value]:
    """The inputs of a program from one batch of inputs of its model."""
    leaves = keras.tree.flatten(batch)
    return {number: (as_tensor(leaf), None) for number, leaf in zip(whole.inputs, leaves, strict=True)}


def _unchanged(layer: keras.Layer, inputs: Any, rows: Moments) -> Any:
    return inputs


def _mask_of(value: Any) -> Any:
    return None if value is None else get_mask(value)


def _host(value: Any) -> NDArray[np.floating]:
    return ops.convert_to_numpy(value)


def _sample(inputs: Any, axis: int, rows: int = 512) -> Any:
    """Rows of the inputs, evenly spread over the batch."""
    rank = len(inputs.shape)
    last = ops.transpose(inputs, [*reduction_axes(rank, axis), axis % rank])
    values = ops.reshape(last, (-1, inputs.shape[axis]))
    count = ops.shape(values)[0]
    stride = max(1, count // rows) if isinstance(count, int) else ops.maximum(1, count // rows)
    return values[::stride][:rows]
