"""BN and dropout as regularizers of a wide network on few examples: neither, each, both."""

from __future__ import annotations

from typing import Any

import keras

from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    Figure,
    accuracy_curves,
    loss_curves,
    panels,
)
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import aligned, percent
from benchmarks.experiments.training import train
from keras_bn import BatchNormalization

VARIANTS = {"neither": ORANGE, "dropout": GREEN, "BN": BLUE, "BN and dropout": RED}


def network(side: int, variant: str, settings: Settings) -> keras.Model:
    layers = keras.layers
    stack = [keras.Input((side, side, 1)), layers.Flatten()]
    for _ in range(settings["hidden_layers"]):
        stack += [layers.Dense(settings["units"])]
        stack += [BatchNormalization(momentum=settings["momentum"])] if "BN" in variant else []
        stack += [layers.ReLU()]
        stack += [layers.Dropout(settings["rate"])] if "dropout" in variant else []
    return keras.Sequential([*stack, layers.Dense(10)])


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    few = slice(settings["examples"])
    data = data._replace(x_train=data.x_train[few], y_train=data.y_train[few])
    return train(
        network(data.x_train.shape[1], variant, settings),
        data,
        optimizer=keras.optimizers.SGD(settings["learning_rate"]),
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        every=settings["every"],
        seed=seed,
    )


def draw(results: Results) -> Figure:
    figure, (left, right) = panels(2)
    accuracy_curves(left, results, VARIANTS, f"{results.settings['examples']} training images")
    loss_curves(right, results, VARIANTS)
    return figure


def table(results: Results) -> str:
    rows = []
    for variant in VARIANTS:
        loss = results.values(variant, "loss")[:, -1]
        accuracy = results.values(variant, "accuracy")
        rows.append([variant, percent(accuracy.max(axis=1)), percent(accuracy[:, -1]), f"{loss.mean():.3f}"])
    return aligned(["", "best accuracy %", "last accuracy %", "last test loss"], rows)


SHARED = dict(
    examples=300,
    hidden_layers=3,
    units=128,
    rate=0.5,
    batch_size=50,
    learning_rate=0.1,
    momentum=0.9,
    every=50,
)
EXPERIMENT = Experiment(
    fast=dict(SHARED, seeds=1, steps=300),
    full=dict(SHARED, seeds=3, steps=1500),
    variants=lambda settings: list(VARIANTS),
    run=run,
    draw=draw,
    table=table,
)
