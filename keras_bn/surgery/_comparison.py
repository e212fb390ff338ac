"""How far the outputs of two models are apart."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bn.errors import KerasBNError
from keras_bn.surgery._state import state_kept


def compare(before: keras.Model, after: keras.Model, inputs: Any, tolerance: float | None = None) -> float:
    """The largest absolute change of any output, both models run as `Model.predict` runs them.

    Args:
        before: the original.
        after: what was made of it.
        inputs: a batch.
        tolerance: the largest change allowed, as a fraction of the largest absolute value of that output;
            None for 1e-5, or 1e-2 for an output of 16 bits.

    Raises:
        KerasBNError: if an output changes by more than that, or is not finite.
    """
    largest = 0.0
    pairs = zip(_outputs(before, inputs), _outputs(after, inputs), strict=True)
    for index, (old, new) in enumerate(pairs):
        name = before.output_names[index] if hasattr(before, "output_names") else str(index)
        allowed = tolerance if tolerance is not None else 1e-5 if old.dtype.size >= 4 else 1e-2
        old, new = (np.asarray(tf.cast(tensor, tf.float64)) for tensor in (old, new))
        for values, which in ((old, "original"), (new, "new")):
            if not np.isfinite(values).all():
                raise KerasBNError(f"Output {name!r} of the {which} model is NaN or infinite on this data.")
        difference, scale = (float(np.abs(values).max(initial=0.0)) for values in (new - old, old))
        if difference > allowed * scale:
            raise KerasBNError(
                f"Output {name!r} changed by {difference:.3g}, more than tolerance={allowed:g} of its scale "
                f"{scale:.3g}; nothing was returned. Raise the tolerance only if you can live with that."
            )
        largest = max(largest, difference)
    return largest


def _outputs(model: keras.Model, inputs: Any) -> list[tf.Tensor]:
    run = tf.function(lambda batch: model(batch, training=False), autograph=False)
    # Traced apart from the call, lest TensorFlow warn of a function that is traced anew for every model.
    with state_kept(model):
        return keras.tree.flatten(run.get_concrete_function(inputs)(inputs))
