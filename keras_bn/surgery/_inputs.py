"""Symbolic inputs of a model, also of one that is subclassed."""

from __future__ import annotations

from typing import Any

import keras

from keras_bn.errors import KerasBNError
from keras_bn.surgery._copying import parameters


def symbolic_inputs(model: keras.Model) -> Any:
    """Symbolic inputs for a subclassed model, of the shapes that it was built for, with an open batch size.

    Raises:
        KerasBNError: if the model does not know these.
    """
    config = model.get_build_config() or {}
    shapes = config.get("input_shape", config.get("shapes_dict"))
    if shapes is None:
        raise KerasBNError(
            f"Model {model.name!r} does not know the shape of its inputs; call it on a batch first."
        )
    name = next(iter(parameters(model.call)), "inputs")
    return _symbolic(shapes, name, model.input_dtype)


def _symbolic(shapes: Any, name: str, dtype: str) -> Any:
    if isinstance(shapes, dict):
        return {key: _symbolic(shape, str(key), dtype) for key, shape in shapes.items()}
    if shapes and isinstance(shapes[0], (list, tuple)):
        return [_symbolic(shape, f"{name}_{index}", dtype) for index, shape in enumerate(shapes)]
    return keras.Input(batch_shape=(None, *shapes[1:]), name=name, dtype=dtype)
