"""Derivatives within a layer's own call, on any backend."""

import importlib
from collections.abc import Callable
from typing import Any

import keras

SUPPORTED = ("tensorflow", "jax", "torch")


def vjp(function: Callable[[Any], tuple[Any, Any]], at: Any) -> tuple[Any, Callable[[Any], Any], Any]:
    """The value of a function, the pull of its derivative, and what else it returned.

    Args:
        function: returns a tensor, the value, and something else. All of it can be differentiated further
            with respect to other tensors, and to those that `at` was made of.
        at: tensor, the point.

    Returns:
        The value; a function of a tensor of its shape, c, that returns the gradient of sum(c * value) with
        respect to `at`; the rest.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(persistent=True) as tape:
            tape.watch(at)
            value, rest = function(at)
        return value, lambda c: tape.gradient(value, at, c), rest
    functions = importlib.import_module("jax" if backend == "jax" else "torch.func")
    value, pull, rest = functions.vjp(function, at, has_aux=True)
    return value, lambda c: pull(c)[0], rest
