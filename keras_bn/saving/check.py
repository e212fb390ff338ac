"""The check that a SavedModel runs in inference mode."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from keras_bn._tensorflow import require_tensorflow


@dataclass(frozen=True)
class InferenceCheck:
    """The result of `verify_inference_mode`. Changes are relative to the largest magnitude in the output.

    The check covers some examples, not all possible inputs.

    Attributes:
        signature: Name of the signature.
        examples: Number of examples.
        requests: Number of requests that contained the examples.
        difference: Largest change of an example's output when other rows of its request changed.
        tolerance: Change that rounding can cause.
        spread: Largest difference between the outputs of two examples, for comparison.
    """

    signature: str
    examples: int
    requests: int
    difference: float
    tolerance: float
    spread: float

    def __str__(self) -> str:
        """The result in one line."""
        return (
            f"{self.signature}: in {self.requests} requests no answer depended on the other rows of its "
            f"request. The answers to {self.examples} examples change by {self.difference:.2g} of their "
            f"scale with the rows around them (rounding explains {self.tolerance:.2g}); between examples "
            f"they differ by {self.spread:.2g}."
        )


def verify_inference_mode(
    path: str | os.PathLike[str], examples: Any = None, *, signature: str = "serving_default"
) -> InferenceCheck:
    """Check that the outputs of a SavedModel for an example do not depend on the other rows of the request.

    A model exported in training mode normalizes by the statistics of the request. Its outputs for an example
    change with the other rows, and a single example is normalized by its own statistics. This function keeps
    an example in its row and replaces all other rows: by other examples, by the same rows on other scales and
    with the opposite sign, by copies of the example, and by constant rows. If the batch size is not fixed,
    the example is also sent alone and in a request twice as long. The outputs must agree up to rounding, and
    a repeated request must give the same outputs. This is done for several examples. Where outputs are padded
    to the longest example of their request, the part that both have is compared.

    SavedModels of any origin can be checked. They are loaded into a separate session, as in TensorFlow
    Serving. A signature of batch size 1 has no other rows, so only the repeated request is compared.

    Args:
        path: Folder with `saved_model.pb`.
        examples: Two or more inputs, an array or a dict of arrays by input name, of which the first 8 are
            used. If None, four examples (or the signature's fixed batch size) are generated from the types
            and shapes of the signature: floats of several scales, bytes from 0 to 255, and other integers of
            0 or 1, which every embedding has. An unknown size becomes 64. An input without axes, such as a
            temperature, is 1; it is never replaced.
        signature: Name of the signature to check.

    Raises:
        KerasBNError: If the outputs depend on the other rows, change from one call to the next (because of
            dropout or a state), or are not finite, apart from some -inf, such as masked logits; if there is
            no such SavedModel or signature; if the generated examples do not fit the model, which then needs
            `examples`; or if TensorFlow is not installed.

    Warns:
        UserWarning: If every example has the same output, so that an influence of other rows would not show.
            The model is saturated or was never trained. The check needs examples of real inputs. Also if the
            batch size is 1. Then the warning names fused normalizations in training mode in the graph.
    """
    require_tensorflow("keras_bn.verify_inference_mode")
    from keras_bn.saving.batch_independence import check_signature

    return check_signature(path, examples, signature)
