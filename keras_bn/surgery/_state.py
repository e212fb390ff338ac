"""The variables that a mere call of a model changes: states of recurrent layers, seeds, counters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bn._keras import flatten_layers


def states_of(layer: keras.Layer) -> list[Any]:
    """The states of a stateful recurrent layer, which Keras does not count among its variables."""
    return keras.tree.flatten(layer.states) if getattr(layer, "stateful", False) and layer.built else []


def variables_of(operation: Any) -> list[Any]:
    """All variables of a layer and those inside it, states of recurrent layers and of seeds included."""
    if not isinstance(operation, keras.Layer):
        return []
    states = [state for layer in flatten_layers(operation) for state in states_of(layer)]
    return list({id(v): v for v in [*operation.variables, *states]}.values())


@contextmanager
def state_kept(model: keras.Model, changing: Iterable[Any] = ()) -> Iterator[None]:
    """Whatever runs inside: the variables that do not train are afterwards what they were, to the bit.

    Args:
        changing: variables that are meant to change.
    """
    others = {id(variable) for variable in [*model.trainable_variables, *changing]}
    kept = [variable for variable in variables_of(model) if id(variable) not in others]
    values = [np.array(ops.convert_to_numpy(variable)) for variable in kept]
    try:
        yield
    finally:
        for variable, value in zip(kept, values, strict=True):
            variable.assign(value)
