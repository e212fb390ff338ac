"""Moving averages against re-estimated population statistics, over training (Wu and Johnson, 2105.07576).

The momentum of the moving averages has no part in training, only in what inference sees, so all variants with
one seed train the same network and differ in the statistics it is tested with.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import keras_bn
from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import BLUE, GREEN, ORANGE, PINK, RED, Figure, accuracy_curves, panels
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import aligned, percent, steps
from benchmarks.experiments.training import evaluate, steps_to, train

POPULATION = "population, re-estimated"
VARIANTS = {
    "momentum 0.5": PINK,
    "momentum 0.9": GREEN,
    "momentum 0.99": ORANGE,
    "momentum 0.999": RED,
    POPULATION: BLUE,
}


def network(side: int, momentum: float, settings: Settings) -> keras.Model:
    layers = keras.layers
    stack = [keras.Input((side, side, 1)), layers.Flatten()]
    for _ in range(settings["hidden_layers"]):
        stack += [layers.Dense(settings["units"], use_bias=False)]
        stack += [keras_bn.BatchNormalization(momentum=momentum), layers.ReLU()]
    return keras.Sequential([*stack, layers.Dense(10)])


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    sample = data.x_train[: settings["population_examples"]]

    def population(model: keras.Model) -> dict[str, Any]:
        model = keras_bn.recalibrate(model, sample, batch_size=len(sample), progress=False).model
        return evaluate(model, data.x_test, data.y_test)

    momentum = 0.99 if variant == POPULATION else float(variant.split()[1])
    return train(
        network(data.x_train.shape[1], momentum, settings),
        data,
        optimizer=keras.optimizers.SGD(settings["learning_rate"], momentum=0.9),
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        every=settings["every"],
        seed=seed,
        measure=population if variant == POPULATION else None,
    )


def draw(results: Results) -> Figure:
    figure, (axes,) = panels()
    title = f"Statistics used at inference, batch {results.settings['batch_size']}"
    accuracy_curves(axes, results, VARIANTS, title)
    return figure


def table(results: Results) -> str:
    """How soon and how steadily each reads the same network; swing is over the second half of the steps."""
    rows = []
    for variant in VARIANTS:
        accuracy = results.values(variant, "accuracy")
        late = accuracy[:, accuracy.shape[1] // 2 :]
        swing = 100 * np.abs(np.diff(late, axis=1)).mean()
        reached = [steps_to(history, 0.9) for history in results.of(variant)]
        rows.append([variant, steps(reached), percent(accuracy[:, -1]), f"{swing:.2f}"])
    return aligned(["", "steps to 90%", "last accuracy %", "mean swing, points"], rows)


SHARED = dict(
    hidden_layers=4, units=100, batch_size=256, learning_rate=0.3, population_examples=1000, every=10
)
EXPERIMENT = Experiment(
    fast=dict(SHARED, seeds=1, steps=20),
    full=dict(SHARED, seeds=3, steps=400),
    variants=lambda settings: list(VARIANTS),
    run=run,
    draw=draw,
    table=table,
)
