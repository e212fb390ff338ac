"""Sequences of variable length, padded with zeros, normalized with and without their mask.

The sequences are of one to `longest` images of digits, the label is the largest digit. They are padded to
several lengths; without the mask BN takes the padding for data.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import BLUE, ORANGE, Figure, accuracy_curves, curve, panels
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import aligned, percent, steps
from benchmarks.experiments.training import steps_to, train
from keras_bn import BatchNormalization

MASKS = {"with mask": BLUE, "without mask": ORANGE}
TARGET = 0.9


def network(pixels: int, masked: bool, settings: Settings) -> keras.Model:
    """Two normalized dense layers for every image, the average over the sequence, and a classifier.

    The average always has the mask; BN gets it, or is told that every step is data.
    """
    layers = keras.layers
    inputs = keras.Input((None, pixels))
    mask = ops.any(ops.not_equal(inputs, 0.0), axis=-1)
    x = inputs
    for _ in range(2):
        x = layers.Dense(settings["units"], use_bias=False)(x)
        bn = BatchNormalization(momentum=settings["momentum"])
        x = bn(x, mask=mask if masked else ops.ones_like(mask))
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling1D()(x, mask=mask)
    x = layers.Dense(settings["units"], activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def sequences(data: Data, padded_to: int, settings: Settings) -> Data:
    """Sequences `(n, padded_to, pixels)` of random images, and the largest digit of each."""
    rng = np.random.default_rng(0)

    def drawn(images: np.ndarray, labels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.integers(len(images), size=(n, settings["longest"]))
        is_data = np.arange(settings["longest"]) < rng.integers(1, settings["longest"] + 1, size=(n, 1))
        x = np.zeros((n, padded_to, images[0].size), "float32")
        x[:, : settings["longest"]] = images.reshape(len(images), -1)[chosen] * is_data[..., np.newaxis]
        return x, np.where(is_data, labels[chosen], 0).max(axis=1)

    return Data(
        *drawn(data.x_train, data.y_train, settings["train_sequences"]),
        *drawn(data.x_test, data.y_test, settings["test_sequences"]),
    )


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    """Training history, and how far more padding moves what a batch of test sequences gives in training."""
    padded_to, mask = variant.split(", ")
    data = sequences(data, int(padded_to.split()[-1]), settings)
    model = network(data.x_train.shape[-1], mask == "with mask", settings)
    history = train(
        model,
        data,
        optimizer=keras.optimizers.SGD(settings["learning_rate"], momentum=0.9),
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        every=settings["every"],
        seed=seed,
    )
    batch = data.x_test[: settings["batch_size"]]
    further = np.pad(batch, ((0, 0), (0, batch.shape[1]), (0, 0)))
    change = model(tf.constant(further), training=True) - model(tf.constant(batch), training=True)
    return {**history, "change_by_padding": np.abs(change).max()}


def variants(settings: Settings) -> list[str]:
    return [f"padded to {length}, {mask}" for length in settings["padded_to"] for mask in MASKS]


def draw(results: Results) -> Figure:
    figure, (left, right) = panels(2)
    lengths = results.settings["padded_to"]
    longest = results.settings["longest"]
    colours = {f"padded to {lengths[-1]}, {mask}": colour for mask, colour in MASKS.items()}
    accuracy_curves(left, results, colours, f"1 to {longest} images padded to {lengths[-1]}")
    for mask, colour in MASKS.items():
        needed = [steps_needed(results, f"padded to {length}, {mask}") for length in lengths]
        curve(right, lengths, np.array(needed, "float64").T, mask, color=colour, marker="o", ms=3)
    right.set(title=f"Steps to {TARGET:.0%}", xlabel="padded to", ylabel="training step", ylim=(0, None))
    right.set_xlim(lengths[0] / 1.2, lengths[-1] * 1.2)  # where no run reached the target, nothing gives them
    right.set_xscale("log", base=2)
    right.set_xticks(lengths, [str(length) for length in lengths])
    right.legend(loc="upper left")
    return figure


def steps_needed(results: Results, variant: str) -> list[int | None]:
    """For every seed the steps to the target accuracy, None where it was not reached."""
    return [steps_to(history, TARGET) for history in results.of(variant)]


def table(results: Results) -> str:
    rows = []
    for variant in variants(results.settings):
        accuracy = results.values(variant, "accuracy")
        change = results.values(variant, "change_by_padding").max()
        needed = steps(steps_needed(results, variant))
        rows.append([variant, needed, percent(accuracy.max(axis=1)), f"{change:.2g}"])
    return aligned(
        ["", f"steps to {TARGET:.0%}", "best accuracy %", "logit change by twice the padding"], rows
    )


SHARED = dict(
    longest=8,
    train_sequences=3000,
    test_sequences=1000,
    units=64,
    batch_size=32,
    learning_rate=0.05,
    momentum=0.9,
)
EXPERIMENT = Experiment(
    fast=dict(SHARED, seeds=1, steps=60, every=20, padded_to=[16]),
    full=dict(SHARED, seeds=3, steps=1000, every=25, padded_to=[8, 16, 32, 64]),
    variants=variants,
    run=run,
    draw=draw,
    table=table,
)
