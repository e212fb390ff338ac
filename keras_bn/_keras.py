"""Every private name of Keras that this package uses, and the public alternative that was tried.

Tested on Keras 3.10 to 3.15. `tests/test_private_names.py` uses each of them, so a release that renames one
fails there first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
from keras.src.backend.common.variables import AutocastScope

# The class of keras.Model(inputs, outputs). keras.Model itself is public, but is also the base of subclassed
# models, which have no graph.
_input = keras.Input((1,), name="input")
Functional: type[keras.Model] = type(keras.Model(_input, keras.layers.Identity(name="output")(_input)))


def flatten_layers(layer: keras.Layer, include_self: bool = True) -> list[keras.Layer]:
    """A layer and every layer inside it, depth first, each once.

    `keras.Model.layers` is public, but lists the first level only, and layers that are no models have none.
    """
    return list(layer._flatten_layers(include_self=include_self))


def graph_of(model: keras.Model) -> Any:
    """The Functional model that a Functional or Sequential one is; None for a Sequential not yet built."""
    return model._functional if isinstance(model, keras.Sequential) else model


def nodes(model: Any) -> Iterator[Any]:
    """The nodes of a Functional model, each after those it depends on.

    `operations` is public, but says neither which tensors an operation is called on nor how often.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from model._nodes_by_depth[depth]


def structures(model: Any) -> tuple[Any, Any]:
    """The inputs and outputs of a Functional model in the structure it was made with.

    `model.inputs` and `model.outputs` are public, but flat.
    """
    return model._inputs_struct, model._outputs_struct


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """What a compiled model was compiled with, as objects; `get_compile_config` serializes them."""
    return dict(model._compile_config.config)


def variables_read_as(dtype: str) -> Any:
    """A context in which layers' variables are read in this dtype, whatever the layer around computes in.

    A layer's `autocast=False` is public, but leaves the casting that the model around it has begun.
    """
    return AutocastScope(dtype)
