"""Statistics level by level: each layer's inputs are computed with those found for the layers before it.

The program of the model is cut where a level of layers takes its inputs. The values at the cut are kept for
every batch, so every step runs once per batch, whatever the number of levels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_bn.errors import KerasBNError
from keras_bn.statistics.population import PopulationMoments
from keras_bn.surgery._activations import Activations
from keras_bn.surgery._program import Program, Step
from keras_bn.surgery._segment import Segment, Sight, Value, inputs_of
from keras_bn.surgery._state import state_kept
from keras_bn.surgery._together import Together
from keras_bn.surgery.observe import pool

Order: TypeAlias = "dict[Step, list[keras.Layer]]"
Found: TypeAlias = "dict[keras.Layer, PopulationMoments]"

# How far the inputs of a layer that is called in a loop may move once its statistics are set, in deviations,
# before we say that its own output comes back to it.
_FEEDBACK = 1e-3


def levels(whole: Program, order: Order, together: Collection[Step] = ()) -> list[list[keras.Layer]]:
    """The layers in order of dependence: the inputs of each level depend on the levels before it alone.

    Args:
        order: the layers that each step calls, in the order of the calls; a later one may depend on those
            before it in the same step.
        together: the steps whose layers count as one level.

    Raises:
        KerasBNError: if a layer that is called several times feeds itself.
    """
    before: dict[keras.Layer, set[keras.Layer]] = {}
    behind: dict[int, frozenset[keras.Layer]] = {}
    for step in whole.steps:
        upstream = frozenset().union(*(behind.get(number, frozenset()) for number in step.sources))
        inside = list(dict.fromkeys(order.get(step, ())))
        for index, layer in enumerate(inside):
            earlier = () if step in together else inside[:index]
            before.setdefault(layer, set()).update(upstream, earlier)
        behind.update(dict.fromkeys(step.targets, upstream.union(inside)))
    level: dict[keras.Layer, int] = {}
    waiting = dict(before)
    while waiting:
        ready = [layer for layer, needs in waiting.items() if needs <= level.keys()]
        if not ready:
            raise feedback(next(iter(waiting)))
        for layer in ready:
            level[layer] = 1 + max((level[other] for other in before[layer]), default=-1)
            del waiting[layer]
    ordered: list[list[keras.Layer]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for layer, depth in level.items():
        ordered[depth].append(layer)
    return ordered


def feedback(layer: keras.Layer) -> KerasBNError:
    """The error for a layer whose own output comes back to it."""
    return KerasBNError(
        f"{layer.name!r} is called several times and its own output comes back to it, so no order of the "
        "layers is sequential; use estimator='batch', or leave it out with layers=."
    )


class Plan:
    """The steps to run, observe and keep at each stage. A stage observes one level of layers.

    Args:
        whole: the program of the model.
        order: as for `levels`.
        compiles: False to compile nothing, which is faster for a few batches.
        together: the steps whose layers are one level; None for none.

    Attributes:
        levels: the layers, level by level.
        stages: how many passes over the kept values there are.

    Raises:
        KerasBNError: as for `levels`.
    """

    def __init__(
        self, whole: Program, order: Order, compiles: bool = True, together: Together | None = None
    ) -> None:
        self.whole, self.order, self.compiles = whole, order, compiles
        self._together = together
        self.together: set[Step] = set() if together is None else together.steps
        self.levels = levels(whole, order, self.together)
        self.level = {layer: number for number, level in enumerate(self.levels) for layer in level}
        # A layer that one step calls repeatedly, in a loop, is looked at again once all in the step are set.
        self._again = {
            layer: 1 + max(self.level[other] for other in layers)
            for layers in order.values()
            for layer in layers
            if layers.count(layer) > 1
        }
        self.stages = max([len(self.levels), *(stage + 1 for stage in self._again.values())])
        self.run_at: dict[Step, int] = {}
        self.last_use: dict[int, int] = {}
        first_use: dict[int, int] = {}
        for step in reversed(whole.steps):
            stages = self.observed_at(step)
            needed = min((first_use[number] for number in step.targets if number in first_use), default=None)
            if needed is not None:
                self.run_at[step] = needed
                stages.append(needed)
            for number in step.sources if stages else ():
                first_use[number] = min([*stages, first_use.get(number, self.stages)])
                # What steps that are run together take is kept until all batches have come so far.
                later = [stage + 1 for stage in self.observed_at(step)] if step in self.together else []
                self.last_use[number] = max([*stages, *later, self.last_use.get(number, 0)])
        self._observers: dict[Step, Segment] = {}

    def run(
        self,
        data: Iterable[Any],
        update: Callable[[Found], None],
        memory_limit: float,
        done: Callable[[], Any] = lambda: None,
    ) -> None:
        """Find the moments of every level of layers in turn, and hand them to `update`, which sets them.

        Args:
            data: batches of inputs; read once.
            update: takes the moments of the inputs of each layer of a level.
            memory_limit: bytes of values to keep in memory; the rest goes to disk.
            done: called after each batch of each stage.

        Raises:
            KerasBNError: if the inputs of a layer are not finite, or change with its own statistics.
        """
        found: Found = {}
        changing = [variable for layer in self.level for variable in layer.variables]
        with state_kept(self.whole.model, changing), Activations(memory_limit) as kept:
            for number in range(self.stages):
                stage = _Stage(self, number)
                seen: Found = {}
                batches = enumerate(data) if number == 0 else ((i, None) for i in range(len(kept)))
                for index, batch in batches:
                    given = inputs_of(self.whole, batch) if number == 0 else kept.take(index)
                    sights, values = stage(given)
                    pool(sights, seen)
                    kept.put(index, values)
                    done()
                for layer in self.again(number):
                    if _moved(found[layer], seen.pop(layer), layer.epsilon):
                        raise feedback(layer)
                if seen:
                    update(seen)
                    found |= seen
                for step in self.together_at(number):
                    found |= self._inside(step, kept, update, memory_limit)

    def _inside(
        self, step: Step, kept: Activations, update: Callable[[Found], None], memory_limit: float
    ) -> Found:
        """Find and set the statistics of all layers in a step, at once or one after the other."""
        assert self._together is not None
        if self._together.fits(step, len(kept), memory_limit):
            batches = [kept.take(index) for index in range(len(kept))]
            found = self._together.run(step, batches, update)
            for index, values in enumerate(batches):
                kept.put(index, values)
            if found is not None:
                return found
        found = {}
        for layer in self.order[step]:
            seen: Found = {}
            for index in range(len(kept)):
                values = kept.take(index)
                pool((sight for sight in self.observer(step)(values)[0] if sight.layer is layer), seen)
                kept.put(index, values)
            update(seen)
            found |= seen
        return found

    def together_at(self, stage: int) -> list[Step]:
        """The steps whose layers are set together at a stage."""
        steps = [step for step in self.whole.steps if step in self.together]
        return [step for step in steps if self.level[self.order[step][0]] == stage]

    def observed_at(self, step: Step) -> list[int]:
        """The stages at which layers in a step are observed."""
        layers = self.order.get(step, [])
        return [self.level[x] for x in layers] + [self._again[x] for x in layers if x in self._again]

    def again(self, stage: int) -> list[keras.Layer]:
        """The layers that are looked at a second time at a stage."""
        return [layer for layer, number in self._again.items() if number == stage]

    def observer(self, step: Step) -> Segment:
        """The function that observes all layers inside a step, compiled once for all levels."""
        if step not in self._observers:
            self._observers[step] = Segment(
                self.whole, [], self.order[step], observed=[step], compiles=self.compiles
            )
        return self._observers[step]


class _Stage:
    """From the values that were kept, those of the next level, what is seen of it, and the values to keep."""

    def __init__(self, plan: Plan, stage: int) -> None:
        steps = [step for step in plan.whole.steps if plan.run_at.get(step) == stage]
        observed = [
            step for step in plan.whole.steps if stage in plan.observed_at(step) and step not in plan.together
        ]
        plain = [step for step in observed if plan.order[step] == [step.operation]]
        inside = [step for step in observed if step not in plain]
        run = {step for step, when in plan.run_at.items() if when <= stage}
        there = {*plan.whole.inputs, *(number for step in run for number in step.targets)}
        self._later = [number for number in sorted(there) if plan.last_use.get(number, -1) > stage]
        now = [number for step in inside for number in step.sources]
        self._layers = set(plan.again(stage))
        self._layers.update(layer for layer, level in plan.level.items() if level == stage)
        self._observers = [plan.observer(step) for step in inside]
        self._segment = Segment(
            plan.whole,
            steps,
            [step.operation for step in plain],
            observed=plain,
            keep=list(dict.fromkeys([*self._later, *now])),
            compiles=plan.compiles,
        )

    def __call__(self, values: dict[int, Value]) -> tuple[list[Sight], dict[int, Value]]:
        sights, values = self._segment(values)
        for observer in self._observers:
            sights += observer(values)[0]
        seen = [sight for sight in sights if sight.layer in self._layers]
        return seen, {number: values[number] for number in self._later}


def _moved(before: PopulationMoments, after: PopulationMoments, epsilon: float) -> bool:
    """Whether the moments of a layer's inputs are others than they were."""
    deviation = np.sqrt(before.variance + epsilon)
    shift = np.abs(after.mean - before.mean) / deviation
    ratio = np.sqrt(after.variance + epsilon) / deviation
    return bool(shift.max() > _FEEDBACK or np.abs(np.log(ratio)).max() > _FEEDBACK)
