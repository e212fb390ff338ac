"""The difference between the outputs of two models on noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_bn.errors import KerasBNError
from keras_bn.surgery._inputs import symbolic_inputs
from keras_bn.surgery._replaced_calls import replaced_calls
from keras_bn.surgery._state import state_kept


def change_on_noise(before: keras.Model, after: keras.Model, data: Any = None) -> float | None:
    """The largest absolute change of an output on two examples of noise, None where a model takes no floats.

    Axes of unknown length are 64 long. One of the models may be subclassed. With `data`, a batch of inputs,
    it is the change on that instead.
    """
    if data is not None:
        return _change(before, after, data)
    noise = _noise_for_either(before, after)
    if noise is None:
        return None
    try:
        return _change(before, after, noise)
    except Exception:  # noise need not make sense to a model, which fails in a way of its backend
        return None


def differs(before: keras.Model, after: keras.Model, data: Any = None) -> bool:
    """Whether an output differs by a bit, or only the second model fails, on data or on noise.

    False where that cannot be seen: without data, a model takes strings, or the first one fails too.
    """
    inputs = _noise_for_either(before, after, integers=True) if data is None else data
    pairs = _pairs(before, after, inputs)
    return pairs is None or not all(np.array_equal(*pair, equal_nan=True) for pair in pairs)


def fails_on_noise(before: keras.Model, after: keras.Model, tolerance: float = 0.1) -> bool:
    """Whether only the second model fails on noise, or an output is off by more than rounding explains.

    Args:
        tolerance: as a fraction of the largest value of the output.
    """
    pairs = _pairs(before, after, _noise_for_either(before, after))
    return pairs is None or any(
        np.abs(new - old).max(initial=0) > tolerance * np.abs(old).max(initial=0) for old, new in pairs
    )


def _pairs(
    before: keras.Model, after: keras.Model, inputs: Any
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """The outputs of both models: none without inputs or where the first fails, None if only the second does.

    What an operation raises is a matter of the backend.
    """
    if inputs is None:
        return []
    try:
        expected = _outputs(before, inputs)
    except Exception:  # noise need not make sense to a model
        return []
    try:
        outputs = _outputs(after, inputs)
    except Exception:  # that is what is asked
        return None
    return list(zip(expected, outputs, strict=True))


def _change(before: keras.Model, after: keras.Model, inputs: Any) -> float:
    pairs = zip(_outputs(before, inputs), _outputs(after, inputs), strict=True)
    return max(float(np.abs(new - old).max(initial=0.0)) for old, new in pairs)


def called_in_training(model: keras.Model, layers: Sequence[Any]) -> list[Any]:
    """Those of the layers that a model at inference calls with training=True, as far as noise shows it."""
    noise, found = _noise_for(model), []

    def recorded(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("training"):
                found.append(layer)
            return call(*args, **kwargs)

        return record

    if noise is None:
        return []
    try:
        with replaced_calls(layers, recorded):
            _outputs(model, noise)
    except Exception:  # noise need not make sense to a model
        return []
    return found


def _noise_for_either(before: keras.Model, after: keras.Model, integers: bool = False) -> Any:
    """Noise for the model that knows its inputs: one may be subclassed."""
    return _noise_for(before if getattr(before, "inputs", None) else after, integers)


def _noise_for(model: keras.Model, integers: bool = False) -> Any:
    """Two examples for a model; None where it takes no floats, or does not know what it takes.

    Args:
        integers: If True, integers are made up as well: zeros and ones, which most vocabularies have.
    """
    if getattr(model, "inputs", None):
        inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    else:
        try:
            inputs = symbolic_inputs(model)
        except KerasBNError:
            return None
    tensors = keras.tree.flatten(inputs)
    types = {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}
    floats = {each for each in types if keras.backend.is_float_dtype(each)}
    if not tensors or "string" in types or (types != floats and not integers):
        return None
    random = np.random.default_rng(0)
    fixed = {tensor.shape[0] for tensor in tensors} - {None}
    count = fixed.pop() if fixed else 2

    def values(tensor: Any) -> Any:
        shape = (count, *(n or 64 for n in tensor.shape[1:]))
        if keras.backend.is_float_dtype(tensor.dtype):
            return random.normal(size=shape).astype("float32")
        return random.integers(0, 2, shape).astype(tensor.dtype)

    return keras.tree.map_structure(values, inputs)


def _outputs(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    with state_kept(model):
        outputs = keras.tree.flatten(model(inputs, training=False))
    arrays = [keras.ops.convert_to_numpy(keras.ops.cast(output, "float32")) for output in outputs]
    return [array.astype("float64") for array in arrays]
