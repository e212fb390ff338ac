"""BN before the activation, as the paper has it, or after, for ReLU and for the sigmoid."""

from __future__ import annotations

from typing import Any

import keras

from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import BLUE, GREEN, ORANGE, Figure, accuracy_curves, panels
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import accuracies
from benchmarks.experiments.training import train
from keras_bn import BatchNormalization

ACTIVATIONS = {"relu": "ReLU", "sigmoid": "Sigmoid"}
PLACES = {"no BN": ORANGE, "BN before": BLUE, "BN after": GREEN}


def network(side: int, activation: str, place: str, settings: Settings) -> keras.Model:
    layers = keras.layers
    stack = [keras.Input((side, side, 1))]
    for filters in settings["filters"]:
        stack += [layers.Conv2D(filters, 3, padding="same")]
        stack += [BatchNormalization(momentum=settings["momentum"])] if place == "BN before" else []
        stack += [layers.Activation(activation)]
        stack += [BatchNormalization(momentum=settings["momentum"])] if place == "BN after" else []
        stack += [layers.MaxPooling2D()]
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(10)])


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    activation, place = variant.split(", ")
    return train(
        network(data.x_train.shape[1], activation, place, settings),
        data,
        optimizer=keras.optimizers.SGD(settings["learning_rate"]),
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        every=settings["every"],
        seed=seed,
    )


def variants(settings: Settings) -> list[str]:
    return [f"{activation}, {place}" for activation in ACTIVATIONS for place in PLACES]


def draw(results: Results) -> Figure:
    figure, axes = panels(2, sharey=True)
    for panel, (activation, title) in zip(axes, ACTIVATIONS.items(), strict=True):
        colours = {f"{activation}, {place}": colour for place, colour in PLACES.items()}
        accuracy_curves(panel, results, colours, f"{title} network")
    return figure


def table(results: Results) -> str:
    return accuracies(results, variants(results.settings), 0.95)


SHARED = dict(filters=[16, 32, 64], batch_size=64, learning_rate=0.1, momentum=0.9, every=20)
EXPERIMENT = Experiment(
    fast=dict(SHARED, seeds=1, steps=60),
    full=dict(SHARED, seeds=3, steps=1000),
    variants=variants,
    run=run,
    draw=draw,
    table=table,
)
