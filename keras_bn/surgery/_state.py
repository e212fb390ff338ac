"""The states of recurrent layers that go on from one batch to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_bn._keras import flatten_layers


def states_of(layer: keras.Layer) -> list[Any]:
    """The states of a stateful recurrent layer, which Keras does not count among its variables."""
    return keras.tree.flatten(layer.states) if getattr(layer, "stateful", False) and layer.built else []


@contextmanager
def state_kept(model: keras.Model) -> Iterator[None]:
    """Whatever runs inside: the states of stateful recurrent layers are afterwards what they were."""
    states = [(state, state.numpy()) for layer in flatten_layers(model) for state in states_of(layer)]
    try:
        yield
    finally:
        for variable, value in states:
            variable.assign(value)
