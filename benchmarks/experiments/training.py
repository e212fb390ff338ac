"""A training loop for small networks: many steps in one compiled call, so that Python's share is nil."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.experiments.data import Data

Measure = Callable[[keras.Model], dict[str, Any]]

# XLA makes a step of a dense network, or of a tiny convolutional batch, two to three times faster; on larger
# convolutional batches its single-threaded convolutions make it several times slower.
LARGEST_CONVOLUTIONAL_XLA_BATCH = 8
EVALUATION_BATCH = 1000

# Not attributes of the models, since a copy of a model would take over the function of the original.
_compiled_inference: weakref.WeakKeyDictionary[keras.Model, Callable[[tf.Tensor], tf.Tensor]] = (
    weakref.WeakKeyDictionary()
)


def train(
    model: keras.Model,
    data: Data,
    *,
    optimizer: keras.optimizers.Optimizer,
    steps: int,
    batch_size: int,
    every: int,
    seed: int,
    measure: Measure | None = None,
) -> dict[str, list[Any]]:
    """Train a classifier that returns logits, and measure it before the first step and after every `every`.

    Args:
        model: maps images to logits `(n, 10)`.
        data: trained on in shuffled epochs; batches are never short, an epoch may end inside one.
        optimizer: applied to the mean cross-entropy plus the model's own losses.
        steps: how many; a multiple of `every`.
        batch_size: images per step.
        every: steps between two measurements.
        seed: of the shuffling.
        measure: what is measured; accuracy and loss on the test set if None.

    Returns:
        A list under "step", and one under every name that `measure` returns. A run that diverges goes on,
        with losses that are not finite.
    """
    measure = measure or (lambda model: evaluate(model, data.x_test, data.y_test))
    compiled = _compiled_steps(model, data, optimizer, _uses_xla(model, batch_size))
    run = compiled.get_concrete_function(tf.TensorSpec((every, batch_size), tf.int64))
    batches = shuffled_batches(len(data.x_train), steps, batch_size, seed)
    history: dict[str, list[Any]] = {}
    for step in range(0, steps + 1, every):
        if step:
            run(tf.constant(batches[step - every : step]))
        for name, value in {"step": step, **measure(model)}.items():
            history.setdefault(name, []).append(value)
    return history


def evaluate(model: keras.Model, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Accuracy and mean cross-entropy at inference."""
    logits = predict(model, x)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return {
        "accuracy": float(np.mean(logits.argmax(axis=1) == y)),
        "loss": float(-np.mean(log_probabilities[np.arange(len(y)), y])),
    }


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """The outputs at inference, float64, from a function that is compiled once per model."""
    if model not in _compiled_inference:
        images = tf.TensorSpec((None, *x.shape[1:]), x.dtype)
        of_model = weakref.proxy(model)  # a key that its value refers to would never be dropped
        compiled = tf.function(lambda x: of_model(x, training=False))
        _compiled_inference[model] = compiled.get_concrete_function(images)
    inference = _compiled_inference[model]
    parts = [x[i : i + EVALUATION_BATCH] for i in range(0, len(x), EVALUATION_BATCH)]
    return np.concatenate([inference(tf.constant(part)).numpy() for part in parts]).astype("float64")


def shuffled_batches(examples: int, steps: int, batch_size: int, seed: int) -> np.ndarray:
    """Indices `(steps, batch_size)` that walk through shuffled epochs one after another."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch_size // examples)
    indices = np.concatenate([rng.permutation(examples) for _ in range(epochs)])
    return indices[: steps * batch_size].reshape(steps, batch_size)


def steps_to(history: dict[str, Sequence[float]], accuracy: float) -> int | None:
    """The first measured step with at least this test accuracy, None if there is none."""
    reached = (s for s, a in zip(history["step"], history["accuracy"], strict=True) if a >= accuracy)
    return next(reached, None)


def _compiled_steps(
    model: keras.Model, data: Data, optimizer: keras.optimizers.Optimizer, xla: bool
) -> tf.types.experimental.PolymorphicFunction:
    x_train, y_train = tf.constant(data.x_train), tf.constant(data.y_train)
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=xla)
    def run(batches: tf.Tensor) -> None:
        for batch in batches:
            with tf.GradientTape() as tape:
                logits = model(tf.gather(x_train, batch), training=True)
                cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    tf.gather(y_train, batch), logits
                )
                loss = tf.add_n([tf.reduce_mean(cross_entropy), *model.losses])
            optimizer.apply(tape.gradient(loss, model.trainable_variables))

    return run


def _uses_xla(model: keras.Model, batch_size: int) -> bool:
    convolutional = any(len(weight.shape) > 2 for weight in model.trainable_variables)
    return not convolutional or batch_size <= LARGEST_CONVOLUTIONAL_XLA_BATCH
