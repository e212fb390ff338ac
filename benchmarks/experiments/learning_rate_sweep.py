"""Which learning rates train a deep ReLU network with and without BN, by SGD in a fixed number of steps."""

from __future__ import annotations

from typing import Any

import keras

from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import BLUE, ORANGE, Figure, curve, panels, percent_axis
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import aligned, percent
from benchmarks.experiments.training import train
from keras_bn import BatchNormalization

VARIANTS = {"without BN": ORANGE, "with BN": BLUE}


def network(side: int, bn: bool, settings: Settings) -> keras.Model:
    layers = keras.layers
    stack = [keras.Input((side, side, 1)), layers.Flatten()]
    for _ in range(settings["hidden_layers"]):
        stack += [layers.Dense(settings["units"], use_bias=not bn, kernel_initializer="he_normal")]
        stack += [BatchNormalization(momentum=settings["momentum"])] if bn else []
        stack += [layers.ReLU()]
    return keras.Sequential([*stack, layers.Dense(10)])


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    """The last test accuracy for every learning rate; a run that diverged has that of guessing."""
    accuracies = []
    for learning_rate in settings["learning_rates"]:
        history = train(
            network(data.x_train.shape[1], variant == "with BN", settings),
            data,
            optimizer=keras.optimizers.SGD(learning_rate),
            steps=settings["steps"],
            batch_size=settings["batch_size"],
            every=settings["steps"],
            seed=seed,
        )
        accuracies.append(history["accuracy"][-1])
    return {"accuracy": accuracies}


def draw(results: Results) -> Figure:
    figure, (axes,) = panels()
    for variant, colour in VARIANTS.items():
        accuracy = results.values(variant, "accuracy")
        curve(axes, results.settings["learning_rates"], accuracy, variant, color=colour, marker="o", ms=3)
    title = f"{results.settings['hidden_layers']} hidden layers, {results.settings['steps']} steps of SGD"
    axes.set(title=title, xlabel="learning rate", xscale="log")
    percent_axis(axes)
    axes.legend(loc="lower left")
    return figure


def table(results: Results) -> str:
    rates = results.settings["learning_rates"]
    columns = [results.values(variant, "accuracy") for variant in VARIANTS]
    rows = [[f"{rate:g}", *(percent(column[:, i]) for column in columns)] for i, rate in enumerate(rates)]
    return aligned(["learning rate", *(f"{variant} %" for variant in VARIANTS)], rows)


SHARED = dict(hidden_layers=6, units=64, batch_size=64, momentum=0.9)
EXPERIMENT = Experiment(
    fast=dict(SHARED, seeds=1, steps=200, learning_rates=[0.01, 0.1, 1.0]),
    full=dict(
        SHARED,
        seeds=3,
        steps=1000,
        learning_rates=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0],
    ),
    variants=lambda settings: list(VARIANTS),
    run=run,
    draw=draw,
    table=table,
)
