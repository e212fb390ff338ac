"""How far the outputs of two models are apart on noise."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_bn.surgery._state import state_kept


def change_on_noise(before: keras.Model, after: keras.Model, data: Any = None) -> float | None:
    """The largest absolute change of an output on two examples of noise, None where a model takes no floats.

    Axes of unknown length are 64 long. With `data`, a batch of inputs, it is the change on that instead.
    """
    if data is not None:
        return _change(before, after, data)
    if not getattr(before, "inputs", None) or not all(
        keras.backend.is_float_dtype(tensor.dtype) for tensor in before.inputs
    ):
        return None
    random = np.random.default_rng(0)
    noise = keras.tree.map_structure(
        lambda tensor: random.normal(size=(2, *(n or 64 for n in tensor.shape[1:]))).astype(tensor.dtype),
        before.inputs[0] if isinstance(before, keras.Sequential) else before.input,
    )
    try:
        return _change(before, after, noise)
    except (ValueError, RuntimeError):  # noise need not make sense to a model
        return None


def _change(before: keras.Model, after: keras.Model, inputs: Any) -> float:
    pairs = zip(_outputs(before, inputs), _outputs(after, inputs), strict=True)
    return max(float(np.abs(new - old).max(initial=0.0)) for old, new in pairs)


def _outputs(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    with state_kept(model):
        outputs = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(keras.ops.cast(output, "float64")) for output in outputs]
