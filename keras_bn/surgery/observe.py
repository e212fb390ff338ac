"""The inputs of a model's normalizations, observed by replacing the `call` of each while the model runs.

So it works wherever a layer is called: in nested models, in custom layers, in wrappers, several times,
with a mask, and on every backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_bn._keras import flatten_layers, get_mask, set_mask
from keras_bn.errors import KerasBNError
from keras_bn.statistics.moments import Moments, merged, reduction_axes
from keras_bn.statistics.population import PopulationMoments, row_moments
from keras_bn.surgery._compiled import (
    as_tensor,
    compiled,
    in_one_kernel,
    step_by_step,
    without_gradients,
)
from keras_bn.surgery._program import Program, Step, program
from keras_bn.surgery._state import state_kept

# The outputs of a layer while it is observed, from the layer, its inputs, and their moments row by row.
Output: TypeAlias = Callable[[keras.Layer, Any, Moments], Any]

# A value of a program while it runs, and the mask that Keras hands on with it.
Value: TypeAlias = "tuple[Any, Any]"


@dataclass(frozen=True)
class Sight:
    """One call of an observed layer on one batch.

    Attributes:
        step: the step of the program that the layer was called in.
        rows: the moments of its inputs, row by row.
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
                rows = _row_moments(inputs, layer.axis, kwargs.get("mask"))
                self._seen.append((step, layer))
                records.append([*rows, _sample(inputs, layer.axis) if self._sampled else None])
                return call(inputs, *args, **kwargs) if output is None else output(layer, inputs, rows)

            return observe

        with _replaced_calls(layers, watched):
            yield


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

    def moments_of(self, batch: Any) -> dict[keras.Layer, PopulationMoments]:
        """The moments of the inputs of every layer over one batch, by a function that is compiled once.

        The weights and statistics of the model must not change between calls.
        """
        result: dict[keras.Layer, PopulationMoments] = {}
        pool(self.sights_of(batch), result)
        return result

    def sights_of(self, batch: Any) -> list[Sight]:
        """The observations of one batch, as for `moments_of`."""
        values = inputs_of(self.program, batch)
        with state_kept(self._model):
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
        except Exception:
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
        self.unseen |= {layer: "is never called" for layer in missing if id(layer) not in seen}
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
                except Exception:
                    kind = type(step.operation).__name__
                    reason = f"is called where {kind} hides its inputs, in a loop or a compiled function"
                    self.unseen |= dict.fromkeys(layers, reason)
            values = values | results


def layers_in(step: Step) -> list[keras.Layer]:
    """The layers of a step: the one it calls and all inside that."""
    return flatten_layers(step.operation) if isinstance(step.operation, keras.Layer) else []


def inputs_of(whole: Program, batch: Any) -> dict[int, Value]:
    """The inputs of a program from one batch of inputs of its model."""
    leaves = keras.tree.flatten(batch)
    return {number: (as_tensor(leaf), None) for number, leaf in zip(whole.inputs, leaves, strict=True)}


def pool(sights: Iterable[Sight], into: dict[keras.Layer, PopulationMoments]) -> None:
    """Add what was seen of one batch to the moments of each layer.

    Raises:
        KerasBNError: if the inputs of a layer are not finite.
    """
    for sight in sights:
        layer, rows = sight.layer, sight.rows
        moments = into.setdefault(layer, PopulationMoments(rows.mean.shape[-1]))
        if not (np.isfinite(rows.mean).all() and np.isfinite(rows.variance).all()):
            raise KerasBNError(
                f"The inputs of {layer.name!r} are not finite on this data, so they have no statistics; "
                "check the scale of the data and the weights of the layers before it, or use a wider dtype."
            )
        moments.update_rows(*rows)


def normalized_by_batch(layer: Any, inputs: Any, rows: Moments) -> Any:
    """The outputs of BN in training, for any class of layer."""
    dtype = keras.backend.standardize_dtype(rows.mean.dtype)
    _, mean, variance = merged(rows)
    outputs = ops.batch_normalization(
        ops.cast(inputs, dtype),
        mean,
        variance,
        axis=layer.axis,
        offset=ops.cast(layer.beta, dtype) if layer.center else None,
        scale=ops.cast(layer.gamma, dtype) if layer.scale else None,
        epsilon=layer.epsilon,
    )
    return ops.cast(outputs, inputs.dtype)


@contextmanager
def _replaced_calls(layers: Sequence[keras.Layer], wrap: Callable[..., Callable[..., Any]]) -> Iterator[None]:
    try:
        for layer in layers:
            layer.call = wrap(layer, layer.call)
        yield
    finally:
        for layer in layers:
            if "call" in vars(layer):
                del layer.call


def _row_moments(inputs: Any, axis: int, mask: Any) -> Moments:
    if mask is not None or len(inputs.shape) == 2:
        return row_moments(inputs, axis, mask)
    return in_one_kernel(row_moments, inputs, axis)


def _unchanged(layer: keras.Layer, inputs: Any, rows: Moments) -> Any:
    return inputs


def _mask_of(value: Any) -> Any:
    return None if value is None else get_mask(value)


def _bytes(rows: Moments) -> int:
    """Of the values that have these moments, in float32."""
    count = np.broadcast_to(rows.count, (len(rows.mean), 1))
    return int(4 * count.sum() * rows.mean.shape[-1])


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
