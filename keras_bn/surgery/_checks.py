"""Checks of a model that its verbs share."""

from __future__ import annotations

import keras
import numpy as np

from keras_bn.errors import KerasBNError


def check_weights(model: keras.Model) -> None:
    """Raise a KerasBNError if a weight holds NaN or infinity."""
    for weight in model.weights:
        values = keras.ops.convert_to_numpy(weight)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise KerasBNError(
                f"Weight {weight.path!r} of model {model.name!r} holds NaN or infinity; load sound weights."
            )
