"""LeNet-5 (LeCun et al., 1998) with tanh and average pooling, with and without BN before every tanh."""

from __future__ import annotations

from typing import Any

import keras

from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import BLUE, ORANGE, Figure, accuracy_curves, loss_curves, panels
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import accuracies
from benchmarks.experiments.training import train
from keras_bn import BatchNormalization

VARIANTS = {"without BN": ORANGE, "with BN": BLUE}


def network(side: int, bn: bool, settings: Settings) -> keras.Model:
    """LeNet-5; its convolutions are padded, or 8x8 images would have nothing left."""
    layers = keras.layers

    def normalized(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
        bn_layers = [BatchNormalization(momentum=settings["momentum"])] if bn else []
        return [layer, *bn_layers, layers.Activation("tanh")]

    return keras.Sequential(
        [
            keras.Input((side, side, 1)),
            *normalized(layers.Conv2D(6, 5, padding="same", use_bias=not bn)),
            layers.AveragePooling2D(2),
            *normalized(layers.Conv2D(16, 5, padding="same", use_bias=not bn)),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            *normalized(layers.Dense(120, use_bias=not bn)),
            *normalized(layers.Dense(84, use_bias=not bn)),
            layers.Dense(10),
        ]
    )


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    return train(
        network(data.x_train.shape[1], variant == "with BN", settings),
        data,
        optimizer=keras.optimizers.SGD(settings["learning_rate"]),
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        every=settings["every"],
        seed=seed,
    )


def draw(results: Results) -> Figure:
    figure, (left, right) = panels(2)
    accuracy_curves(left, results, VARIANTS, "LeNet-5")
    loss_curves(right, results, VARIANTS)
    return figure


def table(results: Results) -> str:
    return accuracies(results, list(VARIANTS), 0.95)


EXPERIMENT = Experiment(
    fast=dict(seeds=1, steps=400, every=40, batch_size=64, learning_rate=0.1, momentum=0.9),
    full=dict(seeds=5, steps=2000, every=40, batch_size=64, learning_rate=0.1, momentum=0.9),
    variants=lambda settings: list(VARIANTS),
    run=run,
    draw=draw,
    table=table,
)
