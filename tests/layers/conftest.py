"""One training step of a layer on any Keras backend, with the gradients."""

from typing import NamedTuple

import keras
import numpy as np
import pytest


class Step(NamedTuple):
    y: np.ndarray
    dx: np.ndarray
    dweights: list[np.ndarray]


def training_step(layer, x, dy, mask=None):
    """y = layer(x, training=True), and the gradients of sum(y * dy) to x and the trainable weights."""
    run = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]
    # Some layers take no mask.
    return run(layer, x, dy, {"training": True} if mask is None else {"training": True, "mask": mask})


def _tensorflow(layer, x, dy, arguments):
    import tensorflow as tf

    x = tf.constant(x)
    weights = [w.value for w in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, **arguments)
    dx, *dweights = tape.gradient(y, [x, *weights], tf.cast(dy, y.dtype))
    return Step(y.numpy(), dx.numpy(), [g.numpy() for g in dweights])


def _jax(layer, x, dy, arguments):
    import jax

    if not layer.built:
        layer.build(x.shape)
    fixed = [w.value for w in layer.non_trainable_variables]

    def run(weights, x):
        return layer.stateless_call(weights, fixed, x, **arguments)

    weights = [w.value for w in layer.trainable_variables]
    y, pull, state = jax.vjp(run, weights, jax.numpy.asarray(x), has_aux=True)
    for variable, value in zip(layer.non_trainable_variables, state, strict=True):
        variable.assign(value)
    dweights, dx = pull(jax.numpy.asarray(dy, y.dtype))
    return Step(np.asarray(y), np.asarray(dx), [np.asarray(g) for g in dweights])


def _torch(layer, x, dy, arguments):
    import torch

    x = keras.ops.convert_to_tensor(x, str(x.dtype)).requires_grad_()
    y = layer(x, **arguments)
    values = [x, *(w.value for w in layer.trainable_variables)]
    dx, *dweights = torch.autograd.grad(y, values, keras.ops.cast(dy, y.dtype))
    to_numpy = keras.ops.convert_to_numpy
    return Step(to_numpy(y), to_numpy(dx), [to_numpy(g) for g in dweights])


@pytest.fixture(name="training_step")
def _training_step():
    return training_step
