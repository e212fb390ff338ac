"""The difference between the outputs of two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_bn.errors import KerasBNError
from keras_bn.surgery._compiled import as_tensor, compiled, without_gradients
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
    return difference(before, outputs(before, inputs), outputs(after, inputs), tolerance)


def outputs(model: keras.Model, inputs: Any, compiles: bool = True) -> list[NDArray[Any]]:
    """The outputs of a model at inference on one batch, in a flat list.

    Args:
        compiles: False to run the model as it stands, which is faster for one batch; True for the very
            operations that `Model.predict` runs.
    """
    leaves = keras.tree.flatten(inputs)
    tensors = [as_tensor(leaf) for leaf in leaves]

    def run(values: list[Any]) -> list[Any]:
        return keras.tree.flatten(model(keras.tree.pack_sequence_as(inputs, values), training=False))

    shapes = [() if x is None else tuple(x.shape) for x in tensors]
    with state_kept(model):
        try:
            results = (compiled(run, [model], tensors, shapes) if compiles else without_gradients(run))(
                tensors
            )
        except Exception:  # it may need more than a trace; what else is wrong it says now
            results = without_gradients(run)(tensors)
        return [ops.convert_to_numpy(result) for result in results]


def difference(
    model: keras.Model,
    before: Sequence[NDArray[Any]],
    after: Sequence[NDArray[Any]],
    tolerance: float | None = None,
) -> float:
    """As `compare`, of outputs of `model` that were computed before."""
    largest = 0.0
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        name = model.output_names[index] if hasattr(model, "output_names") else str(index)
        allowed = tolerance if tolerance is not None else 1e-5 if old.dtype.itemsize >= 4 else 1e-2
        old, new = old.astype(np.float64), new.astype(np.float64)
        for values, which in ((old, "original"), (new, "new")):
            if not np.isfinite(values).all():
                raise KerasBNError(f"Output {name!r} of the {which} model is NaN or infinite on this data.")
        change, scale = (float(np.abs(values).max(initial=0.0)) for values in (new - old, old))
        if change > allowed * scale:
            raise KerasBNError(
                f"Output {name!r} changed by {change:.3g}, more than tolerance={allowed:g} of its scale "
                f"{scale:.3g}; nothing was returned. Raise the tolerance only if you can live with that."
            )
        largest = max(largest, change)
    return largest
