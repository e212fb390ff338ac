"""Compare the outputs of a SavedModel with those of the Keras model."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from keras_bn.errors import CheckFailedError
from keras_bn.saving.batch_independence import largest_change
from keras_bn.saving.examples import Tensors
from keras_bn.saving.session import Servable
from keras_bn.saving.signatures import Signature

_BATCH = 32


@dataclass(frozen=True)
class Fidelity:
    """The result of the comparison.

    Attributes:
        examples: Number of examples compared.
        difference: Largest change of an output, relative to its largest magnitude.
        tolerance: Allowed change.
        agreement: Fraction of examples for which the largest value of the first output, the predicted class,
            is in the same place. None if an output has no classes.
    """

    examples: int
    difference: float
    tolerance: float
    agreement: float | None

    def __str__(self) -> str:
        """The result in one line."""
        classes = "" if self.agreement is None else f"; the first class is the same for {self.agreement:.2%}"
        return (
            f"outputs change by at most {self.difference:.2g} of their scale on {self.examples} examples "
            f"(tolerance {self.tolerance:g}){classes}."
        )


def compare(signature: Signature, served: Servable, inputs: Tensors, what: str, tolerance: float) -> Fidelity:
    """Compare `served` with the model behind `signature`, whose state is not changed.

    Raises:
        CheckFailedError: If an output changes by more than `tolerance`.
    """
    count = len(next(iter(inputs.values())))
    expected, answers = [], []
    for start in range(0, count, served.batch_size or _BATCH):
        batch = {
            name: values[start : start + (served.batch_size or _BATCH)] for name, values in inputs.items()
        }
        with keras.StatelessScope():
            outputs = signature.call(*(tf.convert_to_tensor(batch[name]) for name in signature.inputs))
        expected.append({name: value.numpy() for name, value in zip(signature.outputs, outputs, strict=True)})
        answers.append(served.run(batch))
    before, after = _joined(expected), _joined(answers)
    difference = largest_change(after, before)
    if difference > tolerance:
        raise CheckFailedError(
            f"the outputs of the exported {what} differ by {difference:.2g} of the largest output, more than "
            f"tolerance={tolerance:g}; no version was written. In bfloat16, export with precision='float32' "
            "or a larger tolerance. In float32, export with fold=False."
        )
    first = signature.outputs[0]
    return Fidelity(count, difference, tolerance, _agreement(after[first], before[first]))


def _joined(batches: list[Tensors]) -> Tensors:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _agreement(after: np.ndarray, before: np.ndarray) -> float | None:
    if before.ndim != 2 or before.shape[1] < 2 or before.dtype == object:
        return None
    return float(np.mean(after.argmax(1) == before.argmax(1)))
