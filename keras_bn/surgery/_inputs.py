"""Symbolic inputs of a model, also of one that is subclassed."""

from __future__ import annotations

from collections.abc import Callable
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
    names = named_inputs(map_shapes(lambda shape: None, shapes), next(iter(parameters(model.call)), "inputs"))
    tensors = map_shapes(lambda shape: keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype), shapes)
    return keras.tree.map_structure(
        lambda name, tensor: keras.Input(batch_shape=tensor.shape, name=name, dtype=tensor.dtype),
        names,
        tensors,
    )


def map_shapes(function: Callable[[tuple[int | None, ...]], Any], shapes: Any) -> Any:
    """A structure of shapes, which are tuples or lists themselves, with `function` of each shape.

    >>> map_shapes(len, {"image": (None, 8, 8), "pair": [(None, 2), (None,)]})
    {'image': 3, 'pair': [2, 1]}
    """
    if isinstance(shapes, dict):
        return {key: map_shapes(function, each) for key, each in shapes.items()}
    if shapes and isinstance(shapes[0], (list, tuple, dict)):
        return [map_shapes(function, each) for each in shapes]
    return function(tuple(shapes))


def named_inputs(structure: Any, argument: str) -> Any:
    """A structure of inputs with a name in the place of each: its key, or that of the argument and its place.

    >>> named_inputs({"image": None, "pair": {"left": None, "right": [None, None]}}, "inputs")
    {'image': 'image', 'pair': {'left': 'pair_left', 'right': ['pair_right_0', 'pair_right_1']}}
    >>> named_inputs([None, {"mask": None}], "inputs")
    ['inputs_0', {'mask': 'inputs_1_mask'}]
    """

    def named(each: Any, name: str, is_top: bool = False) -> Any:
        if isinstance(each, dict):
            return {key: named(value, str(key) if is_top else f"{name}_{key}") for key, value in each.items()}
        if isinstance(each, (list, tuple)):
            return [named(value, f"{name}_{index}") for index, value in enumerate(each)]
        return name

    return named(structure, argument, is_top=True)
