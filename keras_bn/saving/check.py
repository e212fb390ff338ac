"""The check that a SavedModel answers in inference mode."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from keras_bn._tensorflow import require_tensorflow


@dataclass(frozen=True)
class InferenceCheck:
    """What `verify_inference_mode` measured; changes are relative to the largest magnitude in the output.

    It is a check on some examples and not a proof for all.

    Attributes:
        signature: the signature that was asked.
        examples: the number of examples it rests on.
        requests: the number of requests in which they were asked for.
        difference: the largest change of an example's output with the rows around it.
        tolerance: the change that rounding explains.
        spread: the largest difference between the outputs of two examples, which is what mixing them up
            costs.
    """

    signature: str
    examples: int
    requests: int
    difference: float
    tolerance: float
    spread: float

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.signature}: in {self.requests} requests no answer depended on the other rows of its "
            f"request. The answers to {self.examples} examples change by {self.difference:.2g} of their "
            f"scale with the rows around them (rounding "
            f"explains {self.tolerance:.2g}); between examples they differ by {self.spread:.2g}."
        )


def verify_inference_mode(
    path: str | os.PathLike[str], examples: Any = None, *, signature: str = "serving_default"
) -> InferenceCheck:
    """Check that what a SavedModel answers for an example does not depend on the other rows of the request.

    A model exported in training mode normalizes by the statistics of the request: its answers change with
    their neighbours, and an example alone is normalized by itself. Here each of several examples stays in its
    row while all the others are replaced: by other examples, by themselves on other scales and of the other
    sign, by copies of it, by constant rows. Where the batch size is open it is also asked for alone and in a
    request twice as long. The answers must agree to rounding, and the same request must have the same answer
    twice. Any SavedModel can be checked, whoever wrote it; it is loaded into a session of its own, as
    TensorFlow Serving does.

    A signature of batch size 1 has no other rows: of it only the second answer is compared.

    Args:
        path: the folder with `saved_model.pb`.
        examples: two or more inputs, an array or a dict of arrays by input name, of which the first 8 are
            used. None makes up four, or as many as the signature's batch size, from the types and shapes of
            the signature: floats of several scales, bytes from 0 to 255, other integers 0 or 1 (every
            embedding has those), 64 for a size left open.
        signature: the name of the signature to ask.

    Raises:
        KerasBNError: the outputs depend on the other rows, change from one call to the next (dropout left
            on, a state kept), or are not finite; there is no such SavedModel or signature; the made-up
            examples do not fit the model, which then needs `examples`; or TensorFlow is not installed.

    Warns:
        UserWarning: every example has the same output, which no neighbour can be seen to change: the model is
            saturated, or was never trained. The check needs examples of real inputs.
    """
    require_tensorflow("keras_bn.verify_inference_mode")
    from keras_bn.saving.batch_independence import check_signature

    return check_signature(path, examples, signature)
