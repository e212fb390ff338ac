"""The check that a SavedModel answers in inference mode."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from keras_bn._tensorflow import require_tensorflow


@dataclass(frozen=True)
class Proof:
    """What `verify_inference_mode` measured; changes are relative to the largest magnitude in the output.

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

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.signature}: inference mode. The answers to {self.examples} examples change by "
            f"{self.difference:.2g} of their scale with the batch around them (rounding explains "
            f"{self.tolerance:.2g}); between examples they differ by {self.spread:.2g}."
        )


def verify_inference_mode(
    path: str | os.PathLike[str], examples: Any = None, *, signature: str = "serving_default"
) -> Proof:
    """Prove that what the SavedModel in `path` answers for an example does not depend on the batch around it.

    A model exported in training mode normalizes by the statistics of the request: its answers change with
    their neighbours, and an example alone is normalized by itself. Here the examples are asked for in one
    batch, in the same batch again, in reverse order, and alone, and the answers must agree to rounding. Any
    SavedModel can be checked, whoever wrote it; it is loaded into a session of its own, as TensorFlow
    Serving does.

    Args:
        path: the folder with `saved_model.pb`.
        examples: two or more inputs, an array or a dict of arrays by input name. None makes up four from the
            types and shapes of the signature: floats of several scales, bytes from 0 to 255, other integers 0
            or 1 (every embedding has those), 64 for a size left open.
        signature: the name of the signature to ask.

    Raises:
        KerasBNError: the outputs depend on the batch, change from one call to the next (dropout left on), or
            are not finite; there is no such SavedModel or signature; or the made-up examples do not fit
            the model, which then needs `examples`.

    Warns:
        UserWarning: every example has the same output, which no neighbour can be seen to change: the model is
            saturated, or was never trained. Examples of real inputs make a proof of it.
    """
    require_tensorflow("keras_bn.verify_inference_mode")
    from keras_bn.saving.batch_independence import check_signature

    return check_signature(path, examples, signature)
