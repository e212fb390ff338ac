"""How much the answer to an example depends on the examples around it."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bn.errors import KerasBNError
from keras_bn.saving.check import Proof
from keras_bn.saving.examples import Tensors, generated, given
from keras_bn.saving.session import Servable, servable

# The kernels of TensorFlow (oneDNN, Eigen) choose their blocking, hence the order of their sums, by the size
# of the batch, so an example's output moves in its last bits with the size of the batch around it. Batch
# statistics move it in its first ones. The narrowest floating type in the graph says where its last bits are.
_TOLERANCES = {tf.bfloat16: 1e-1, tf.float16: 2e-2, tf.float32: 1e-4, tf.float64: 1e-10}

_ALONE = 2  # examples that are also asked for one at a time


def check_signature(path: str | os.PathLike[str], examples: Any, signature: str) -> Proof:
    """See `keras_bn.verify_inference_mode`, whose arguments these are."""
    with servable(path, signature) as served:
        batches = generated(served.inputs) if examples is None else [given(served.inputs, examples)]
        what = f"signature {signature!r} of {path}"
        return prove(served, batches, what, made_up=examples is None).proof


@dataclass(frozen=True)
class Proven:
    """A proof, and the batch of inputs and outputs that it started from."""

    proof: Proof
    inputs: Tensors
    outputs: Tensors


def prove(
    served: Servable, batches: Iterable[Tensors], what: str, *, made_up: bool = False, warn: bool = True
) -> Proven:
    """Prove the inference mode of `what` on the first of `batches` whose outputs differ, else on the last."""
    for batch in batches:
        try:
            proven = _compare(served, batch, what)
        except tf.errors.OpError as error:
            hint = " on made-up inputs; pass examples of real ones" if made_up else ""
            raise KerasBNError(f"{what} failed{hint}: {error.message}") from error
        if proven.proof.spread > proven.proof.tolerance:
            return proven
    if warn:
        warnings.warn(
            f"{what} gave every example nearly the same output, so that none changes another says "
            "little; pass examples of which the outputs differ.",
            stacklevel=3,
        )
    return proven


def _compare(served: Servable, batch: Tensors, what: str) -> Proven:
    count = len(next(iter(batch.values())))
    if count < 2:
        raise KerasBNError(f"{what} was given {count} example; one cannot be seen to change another.")
    tolerance = next(value for dtype, value in _TOLERANCES.items() if dtype in served.dtypes | {tf.float64})

    together = served.run(batch)
    for name, output in together.items():
        _check_rows(output, count, f"output {name!r} of {what}")
    again = largest_change(served.run(batch), together)
    if again > tolerance:
        raise KerasBNError(
            f"{what} answers the same request differently each time (by {again:.2g} of its largest output): "
            "something random, such as dropout, is left on; call the layers with training=False."
        )
    difference = largest_change(_reversed(served.run(_reversed(batch))), together)
    for row in range(min(count, _ALONE) if served.batch_size is None else 0):
        one = slice(row, row + 1)
        alone = served.run({name: values[one] for name, values in batch.items()})
        difference = max(difference, largest_change(alone, together, one))
    if difference > tolerance:
        raise KerasBNError(
            f"{what} is not in inference mode: an example's output changes by {difference:.2g} of the "
            f"largest with the examples around it ({tolerance:g} is rounding); call the model with "
            "training=False."
        )
    spread = max(largest_change(together, together, slice(row, row + 1)) for row in range(count))
    return Proven(Proof(served.signature, count, difference, tolerance, spread), batch, together)


def _check_rows(output: np.ndarray, count: int, what: str) -> None:
    if output.shape[:1] != (count,):
        raise KerasBNError(
            f"{what} has shape {output.shape} for {count} examples; it must have a row for each."
        )
    if _is_floating(output) and not np.isfinite(output).all():
        raise KerasBNError(
            f"{what} is not finite; check the weights for NaN, or pass examples of real inputs."
        )


def _is_floating(values: np.ndarray) -> bool:
    return values.dtype != object and tf.as_dtype(values.dtype).is_floating


def _reversed(tensors: Tensors) -> Tensors:
    return {name: values[::-1] for name, values in tensors.items()}


def largest_change(tensors: Tensors, reference: Tensors, rows: slice = slice(None)) -> float:
    """The largest change from `rows` of `reference`, relative to its largest magnitude; 1 for other types."""
    worst = 0.0
    for name, expected in reference.items():
        if _is_floating(expected):
            wide = expected.astype(np.float64)
            change = np.abs(tensors[name].astype(np.float64) - wide[rows]).max()
            worst = max(worst, float(change / (np.abs(wide).max() or 1.0)))
        else:
            worst = max(worst, float(np.any(tensors[name] != expected[rows])))
    return worst
