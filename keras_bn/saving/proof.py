"""The proof that a SavedModel answers in inference mode."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bn.errors import KerasBNError
from keras_bn.saving.examples import Tensors, generated, given
from keras_bn.saving.session import Servable, servable

# The kernels of TensorFlow (oneDNN, Eigen) choose their blocking, hence the order of their sums, by the size
# of the batch, so an example's output moves in its last bits with the size of the batch around it. Batch
# statistics move it in its first ones. The narrowest floating type in the graph says where its last bits are.
_TOLERANCES = {tf.bfloat16: 1e-1, tf.float16: 2e-2, tf.float32: 1e-4, tf.float64: 1e-10}

_ALONE = 4  # examples that are also asked for one at a time


@dataclass(frozen=True)
class Proof:
    """What `verify_inference_mode` measured, relative to the largest magnitude of the output tensor.

    Attributes:
        signature: the signature that was asked.
        examples: the number of examples compared.
        difference: the largest change of an example's output with the examples around it.
        tolerance: the change that rounding explains.
        spread: the largest difference between the outputs of two examples, which is what mixing them up
            costs.
    """

    signature: str
    examples: int
    difference: float
    tolerance: float
    spread: float


def verify_inference_mode(
    path: str | os.PathLike[str], examples: Any = None, *, signature: str = "serving_default"
) -> Proof:
    """Prove that what the SavedModel in `path` answers for an example does not depend on the batch it comes
    in.

    A model exported in training mode normalizes by the statistics of the request: its answers change with
    their neighbours, and an example alone is normalized by itself. Here the examples are asked for in one
    batch, in the same batch again, in reverse order, and alone, and the answers must agree to rounding. Any
    SavedModel can be checked, whoever wrote it; it is loaded into a session of its own, as TensorFlow Serving
    does.

    Args:
        path: the folder with `saved_model.pb`.
        examples: two or more inputs, an array or a dict of arrays by input name. None makes up eight from the
            types and shapes of the signature: floats of several scales, bytes from 0 to 255, other integers 0
            or 1 (every embedding has those), 64 for a size left open.
        signature: the name of the signature to ask.

    Raises:
        KerasBNError: the outputs depend on the batch, change from one call to the next (dropout left on), are
            not finite, or are the same for every example, which proves nothing; there is no such SavedModel
            or signature; or the made-up examples do not fit the model, which then needs `examples`.
    """
    with servable(path, signature) as served:
        batches = generated(served.inputs) if examples is None else [given(served.inputs, examples)]
        what = f"signature {signature!r} of {path}"
        for batch in batches:
            try:
                proof = _compare(served, batch, what, signature)
            except tf.errors.OpError as error:
                hint = " on made-up inputs; pass examples of real ones" if examples is None else ""
                raise KerasBNError(f"{what} failed{hint}: {error.message}") from error
            if proof.spread > proof.tolerance:
                return proof
    raise KerasBNError(
        f"{what} gives every example the same output, which tells nothing of its mode; pass examples that "
        "differ."
    )


def _compare(served: Servable, batch: Tensors, what: str, signature: str) -> Proof:
    count = len(next(iter(batch.values())))
    fixed = next(iter(served.inputs.values())).shape[0] is not None
    if count < 2:
        raise KerasBNError(
            f"{what} was given {count} example; two are needed to see whether one changes the other."
        )
    tolerance = next(value for dtype, value in _TOLERANCES.items() if dtype in served.dtypes | {tf.float64})

    together = served.run(batch)
    for name, output in together.items():
        if output.shape[:1] != (count,):
            raise KerasBNError(
                f"output {name!r} of {what} has shape {output.shape} for {count} examples; it must "
                "have one row for each."
            )
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise KerasBNError(
                f"output {name!r} of {what} is not finite; check the weights, or pass examples."
            )
    again = _difference(served.run(batch), together)
    if again > tolerance:
        raise KerasBNError(
            f"{what} answers the same request differently each time (by {again:.2g} of its largest output): "
            "something random, such as dropout, is left on; call the layers with training=False."
        )
    difference = _difference(_reversed(served.run(_reversed(batch))), together)
    for row in range(0 if fixed else min(count, _ALONE)):
        one = slice(row, row + 1)
        alone = served.run({name: values[one] for name, values in batch.items()})
        difference = max(difference, _difference(alone, together, one))
    if difference > tolerance:
        raise KerasBNError(
            f"{what} is not in inference mode: an example's output changes by {difference:.2g} of the "
            f"largest with the examples around it ({tolerance:g} is rounding); call the model with training=False."
        )
    spread = max(_difference(together, together, slice(row, row + 1)) for row in range(count))
    return Proof(signature, count, difference, tolerance, spread)


def _reversed(tensors: Tensors) -> Tensors:
    return {name: values[::-1] for name, values in tensors.items()}


def _difference(tensors: Tensors, reference: Tensors, rows: slice = slice(None)) -> float:
    """The largest change, relative to the output's largest magnitude; of other types, 1 where any changed."""
    worst = 0.0
    for name, expected in reference.items():
        if expected.dtype.kind in "fc" or expected.dtype == tf.bfloat16.as_numpy_dtype:
            scale = np.abs(expected.astype(np.float64)).max()
            change = np.abs(tensors[name].astype(np.float64) - expected[rows].astype(np.float64)).max()
            worst = max(worst, float(change / scale) if scale else float(change))
        else:
            worst = max(worst, float(np.any(tensors[name] != expected[rows])))
    return worst
