"""Compare the outputs of a SavedModel with those of the Keras model."""

from __future__ import annotations

from collections.abc import Sequence
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

# The kernels of an export sum in another order than those of the model, and folding rounds every filter once.
_TIMES_ROUNDING = 10
_MOST = 1e-2


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


def compare(
    signature: Signature,
    served: Servable,
    inputs: Tensors,
    what: str,
    tolerance: float,
    weights: Sequence[keras.Variable] = (),
) -> Fidelity:
    """Compare `served` with the model behind `signature`, whose state is not changed.

    Args:
        tolerance: Allowed change, relative to the largest output.
        weights: The weights of the model. A network that amplifies rounding is allowed a larger change: ten
            times the one that its outputs undergo when these weights are changed in their last bit. Without
            them, `tolerance` is the limit.

    Raises:
        CheckFailedError: If an output changes by more than is allowed.
    """
    count = len(next(iter(inputs.values())))
    size = served.batch_size or _BATCH
    batches = [
        {name: values[start : start + size] for name, values in inputs.items()}
        for start in range(0, count, size)
    ]
    before = _joined([_answer(signature, batch) for batch in batches])
    after = _joined([served.run(batch) for batch in batches])
    difference = largest_change(after, before)
    advice = (
        "In bfloat16, export with precision='float32' or a larger tolerance. "
        "In float32, export with fold=False."
    )
    if difference > tolerance and weights:
        rounded = _in_last_bit(weights)
        moved = largest_change(_joined([_answer(signature, batch, rounded) for batch in batches]), before)
        if difference <= _TIMES_ROUNDING * moved:
            advice = _of_rounding(moved, difference)
        tolerance = min(max(tolerance, _TIMES_ROUNDING * moved), _MOST)
    if difference > tolerance:
        raise CheckFailedError(
            f"the outputs of the exported {what} differ by {difference:.2g} of the largest output, more than "
            f"tolerance={tolerance:g}; no version was written. {advice}"
        )
    first = signature.outputs[0]
    return Fidelity(count, difference, tolerance, _agreement(after[first], before[first]))


def _of_rounding(moved: float, difference: float) -> str:
    """What to do with a network that no other arithmetic can follow."""
    return (
        f"The network enlarges rounding: moving its weights in their last bit changes its outputs by "
        f"{moved:.2g}. Often, the statistics of its BN layers are not those of the data, or the examples are "
        "on another scale than it was trained for, such as noise where it expects values up to 255. Pass "
        "examples=data, see keras_bn.inspect(model, data), and recalibrate if that says so. If the network "
        f"is meant to be like this, export with tolerance={2 * difference:.1g}."
    )


def _answer(
    signature: Signature, batch: Tensors, weights: Sequence[tuple[keras.Variable, tf.Tensor]] = ()
) -> Tensors:
    """The outputs of the model for a batch, with other values for some of its weights."""
    with keras.StatelessScope(state_mapping=list(weights)):
        outputs = signature.call(*(tf.convert_to_tensor(batch[name]) for name in signature.inputs))
    return {name: value.numpy() for name, value in zip(signature.outputs, outputs, strict=True)}


def _in_last_bit(weights: Sequence[keras.Variable]) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Values for the weights that differ from the present ones by at most 2**-23 of each."""
    rng = np.random.default_rng(0)
    values = [(variable, variable.numpy()) for variable in weights if variable.dtype == "float32"]
    return [
        (variable, tf.constant((value * (1 + rng.uniform(-(2**-23), 2**-23, value.shape))).astype("float32")))
        for variable, value in values
    ]


def _joined(batches: list[Tensors]) -> Tensors:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _agreement(after: np.ndarray, before: np.ndarray) -> float | None:
    if before.ndim != 2 or before.shape[1] < 2 or before.dtype == object:
        return None
    return float(np.mean(after.argmax(1) == before.argmax(1)))
