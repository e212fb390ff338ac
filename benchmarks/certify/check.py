"""One model through every function, each result checked by the oracle."""

from __future__ import annotations

import re
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_bn
from benchmarks.certify import oracle
from keras_bn import KerasBNError

BATCH_SIZE = 4

# Outputs differ by rounding, more so the more layers there are; statistics also by the order of sums. Sixteen
# bits keep 3 digits.
TOLERANCE, TOLERANCE_16 = 2e-3, 3e-2


@dataclass
class Outcome:
    """What a function did to the BN layers of one model.

    Attributes:
        done: BN layers that it handled: converted, recalibrated, absorbed, inspected, frozen; inserted ones
            for `retrofit`; 1 or 0 for `export`.
        affine: of `fold`, those that became a multiply-add, which `done` counts too.
        reasons: what it says of the layers it did not handle, with their number; of `fold` also of those
            that became a multiply-add.
        refused: the message, if it refused the model.
        faults: what the oracle found wrong; none, if all is well.
        seconds: its time, without the oracle's.
    """

    done: int = 0
    affine: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    refused: str = ""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Subject:
    """A model, its data, and what the oracle knows of them before any function ran."""

    def __init__(self, model: keras.Model, inputs: Any) -> None:
        self.inputs = inputs
        fixed = model.inputs[0].shape[0] if getattr(model, "inputs", None) else None
        self.batch_size = fixed or BATCH_SIZE
        # Statistics of all examples: BN would enlarge one that is unlike those it knows, layer after layer.
        self.model = oracle.prepare(model, inputs, fixed or len(keras.tree.flatten(inputs)[0]))
        self.layers = oracle.normalizations(model)
        self.moments = oracle.moments(model, inputs, self.batch_size)
        self.outputs = oracle.run(model, inputs, self.batch_size)
        self.digest = oracle.digest(model)
        narrow = any("16" in layer.compute_dtype for layer in oracle.all_layers(model) if layer.compute_dtype)
        self.tolerance = TOLERANCE_16 if narrow else TOLERANCE

    @property
    def called(self) -> int:
        """How many of its BN layers are ever called."""
        return len(self.moments)

    def inputs_of(self, model: keras.Model) -> Any:
        """The inputs as a model takes them: one without the preprocessor of the subject gets its results."""
        preprocess = getattr(self.model, "preprocessor", None)
        if preprocess is None or getattr(model, "preprocessor", None) is not None:
            return self.inputs
        return keras.tree.map_structure(oracle.value_of, preprocess(self.inputs))

    def run(self, model: keras.Model) -> list[Any]:
        return oracle.run(model, self.inputs_of(model), self.batch_size)

    def outputs_of(self, model: keras.Model) -> list[str]:
        """A fault if a model does not have the outputs that the subject had."""
        off = oracle.distance(self.run(model), self.outputs)
        return [f"outputs differ by {off:.2g} of the largest"] if not off <= self.tolerance else []

    def statistics_of(self, model: keras.Model) -> tuple[int, list[str]]:
        """How many layers hold the statistics of their own inputs, and a fault for each that does not."""
        seen, done, faults = oracle.moments(model, self.inputs_of(model), self.batch_size), 0, []
        for layer in oracle.normalizations(model):
            if id(layer) not in seen:
                continue
            count, mean, variance = seen[id(layer)]
            if getattr(layer, "unbiased_variance", False):
                variance = variance * count / (count - 1)
            held = (oracle.value_of(layer.moving_mean), oracle.value_of(layer.moving_variance))
            off = oracle.misfit(*held, mean, variance, layer.epsilon)
            if off <= self.tolerance:
                done += 1
            else:
                faults.append(f"{layer.path}: statistics are off by {off:.2g}")
        return done, faults


def convert(subject: Subject) -> Outcome:
    result = keras_bn.convert(subject.model)
    new = oracle.normalizations(result.model)
    outcome = Outcome(reasons=_reasons(result.report, "converted"))
    outcome.done = sum(
        type(layer) is keras_bn.BatchNormalization
        for layer, old in zip(new, subject.layers, strict=True)
        if id(old) in subject.moments
    )
    outcome.faults += subject.outputs_of(result.model) + _same_class(subject.model, result.model)
    if [_values(layer.weights) for layer in new] != [_values(layer.weights) for layer in subject.layers]:
        outcome.faults.append("weights of BN layers moved")
    return outcome


def recalibrate(subject: Subject) -> Outcome:
    result = keras_bn.recalibrate(
        subject.model, subject.inputs, batch_size=subject.batch_size, progress=False
    )
    done, faults = subject.statistics_of(result.model)
    outcome = Outcome(done, reasons=_reasons(result.report, "recalibrated"), faults=faults)
    outcome.faults += _same_class(subject.model, result.model)
    if _values(result.model.trainable_variables) != _values(subject.model.trainable_variables):
        outcome.faults.append("trainable weights moved")
    return outcome


def fold(subject: Subject) -> Outcome:
    result = keras_bn.fold(subject.model)
    affine = sum(type(layer).__name__ == "ChannelAffine" for layer in oracle.all_layers(result.model))
    left = oracle.moments(result.model, subject.inputs_of(result.model), subject.batch_size)
    outcome = Outcome(subject.called - len(left), affine, _reasons(result.report, "folded", "absorbed"))
    outcome.faults += subject.outputs_of(result.model)
    return outcome


def retrofit(subject: Subject) -> Outcome:
    result = keras_bn.retrofit(subject.model, subject.inputs, batch_size=subject.batch_size, progress=False)
    seen = oracle.moments(result.model, subject.inputs_of(result.model), subject.batch_size)
    outcome = Outcome(len(seen) - subject.called)
    outcome.faults += subject.outputs_of(result.model)
    return outcome


def inspect(subject: Subject) -> Outcome:
    report = keras_bn.inspect(subject.model, subject.inputs, batch_size=subject.batch_size, progress=False)
    outcome = Outcome(reasons=dict(Counter(each.unseen for each in report.layers if each.unseen)))
    for each in report.layers:
        if each.data is None:
            continue
        own = [layer for layer in subject.layers if _is_reported(layer, each)]
        expected = [subject.moments[id(layer)] for layer in own if id(layer) in subject.moments]
        off = [
            oracle.misfit(each.data.mean, each.data.variance, mean, variance, each.epsilon)
            for _, mean, variance in expected
        ]
        if off and min(off) <= subject.tolerance:
            outcome.done += 1
        else:
            outcome.faults.append(f"{each.layer}: moments are off by {min(off, default=np.inf):.2g}")
    return outcome


def freeze(subject: Subject) -> Outcome:
    result = keras_bn.freeze(subject.model)
    outcome = Outcome(reasons=_reasons(result.report, "joined", "frozen"))
    outcome.faults += subject.outputs_of(result.model)
    back = keras_bn.unfreeze(result.model).model
    # Only now, as a step of training changes the frozen model too.
    outcome.done = subject.called - oracle.trained(
        result.model, subject.inputs_of(result.model), subject.batch_size
    )
    if sorted(_values(back.variables)) != sorted(_values(subject.model.variables)):
        outcome.faults.append("unfreeze does not give the weights back")
    return outcome


def export(subject: Subject) -> Outcome:
    preprocess = getattr(subject.model, "preprocessor", None)
    inputs = subject.inputs if preprocess is None else oracle.value_of(preprocess(subject.inputs))
    with tempfile.TemporaryDirectory() as folder:
        path = keras_bn.export(subject.model, folder, examples=_first(inputs, subject.batch_size))
        loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_default"]
        answers = []
        for start in range(0, len(keras.tree.flatten(inputs)[0]), subject.batch_size):
            batch = _first(inputs, subject.batch_size, start)
            answer = serve(**_named(serve, batch, subject.model))
            answers.append({name: oracle.value_of(value) for name, value in answer.items()})
    outputs = [np.concatenate([answer[name] for answer in answers]).astype("float64") for name in answers[0]]
    # A signature has its outputs by name, a model in its own order.
    pairs = [min(oracle.distance([each], [own]) for own in subject.outputs) for each in outputs]
    off = max(pairs) if len(outputs) == len(subject.outputs) else np.inf
    return Outcome(
        1, faults=[] if off <= subject.tolerance else [f"answers differ by {off:.2g} of the largest"]
    )


FUNCTIONS: dict[str, Callable[[Subject], Outcome]] = {
    "convert": convert,
    "recalibrate": recalibrate,
    "fold": fold,
    "retrofit": retrofit,
    "inspect": inspect,
    "freeze": freeze,
    "export": export,
}


def attempt(name: str, subject: Subject) -> Outcome:
    """Run one function; a refusal is noted, any other exception and a change of the donor are faults."""
    start = time.perf_counter()
    try:
        outcome = FUNCTIONS[name](subject)
    except KerasBNError as error:
        outcome = Outcome(refused=str(error))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras's are bold in parts
        outcome = Outcome(
            faults=[f"{type(error).__name__}: {message} ({Path(where.filename).name}:{where.lineno})"[:400]]
        )
    outcome.seconds = round(time.perf_counter() - start, 1)
    if oracle.digest(subject.model) != subject.digest:
        outcome.faults.append("the donor changed")
    return outcome


def _reasons(report: Any, *done: str) -> dict[str, int]:
    """What a report says of the BN layers that are not done, with the number of such rows."""
    return dict(Counter(f"{row.action}: {row.reason}" for row in report.rows if row.action not in done))


def _same_class(old: keras.Model, new: keras.Model) -> list[str]:
    return [] if type(new) is type(old) else [f"is a {type(new).__name__}, not a {type(old).__name__}"]


def _values(variables: Any) -> list[bytes]:
    return [oracle.value_of(variable).tobytes() for variable in variables]


def _is_reported(layer: Any, report: Any) -> bool:
    """By its statistics, which no two layers share: names say nothing that could not be mixed up."""
    return all(
        np.array_equal(oracle.value_of(weight).astype("float64"), np.asarray(held, "float64"))
        for weight, held in ((layer.moving_mean, report.mean), (layer.moving_variance, report.variance))
    )


def _first(inputs: Any, count: int, start: int = 0) -> Any:
    return keras.tree.map_structure(lambda array: array[start : start + count], inputs)


def _named(serve: Any, batch: Any, model: keras.Model) -> dict[str, Any]:
    arguments = serve.structured_input_signature[1]
    if isinstance(batch, list):
        names = [tensor._keras_history.operation.name for tensor in model.inputs]
        batch = dict(zip(names, batch, strict=True))
    if isinstance(batch, dict):
        return {name: tf.constant(batch[name], spec.dtype) for name, spec in arguments.items()}
    ((name, spec),) = arguments.items()
    return {name: tf.constant(batch, spec.dtype)}
