"""A plain graph of a model whose custom layers hold several BN layers each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_bn.errors import KerasBNError
from keras_bn.surgery._inlining import Inlined
from keras_bn.surgery._program import program
from keras_bn.surgery._segment import layers_in
from keras_bn.surgery.normalizations import is_batch_normalization


def plain_graph(
    model: keras.Model, layers: Sequence[keras.Layer], example: Any
) -> tuple[keras.Model, list[keras.Layer]]:
    """A model to observe level by level, and in it the counterparts of `layers`.

    A layer that holds several BN layers is run once for each of them where it cannot be cut between them. So
    the model returned is a copy in which such layers are inlined, if that can be done, else `model` itself.
    """
    observed = {id(layer) for layer in layers}
    steps = program(model, example).steps
    if all(sum(id(x) in observed for x in layers_in(step)) < 2 for step in steps):
        return model, list(layers)
    leaves = keras.tree.flatten(example)
    if not all(keras.backend.is_float_dtype(str(leaf.dtype)) for leaf in leaves if hasattr(leaf, "dtype")):
        return model, list(layers)  # a subclassed model does not say which dtype it takes
    try:
        inlined = Inlined(model, is_batch_normalization)
    except KerasBNError:
        return model, list(layers)
    if not inlined.opened or len(inlined.model.inputs) != len(leaves):
        return model, list(layers)
    return inlined.model, [twin for _, twin in inlined.normalizations([("", layer) for layer in layers])]
