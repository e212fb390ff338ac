"""Section 4.1 and figure 1 of the paper: three hidden layers of 100 sigmoid units on binary images.

The paper gives neither a learning rate nor the width of its "small random Gaussian" weights; ours are in the
settings. The percentiles are of the first unit of the last hidden layer, over the test set.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from matplotlib.ticker import PercentFormatter

from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import BLUE, ORANGE, Figure, accuracy_curves, curve, panels, step_axis
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import aligned, percent, steps
from benchmarks.experiments.training import evaluate, predict, steps_to, train
from keras_bn import BatchNormalization

VARIANTS = {"without BN": ORANGE, "with BN": BLUE}
PERCENTILES = (15, 50, 85)
TARGETS = (0.80, 0.90)
SHOWN_TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9)


def network(side: int, bn: bool, settings: Settings) -> keras.Model:
    """Images to logits; the inputs of the last sigmoid layer are the output of the layer "last_inputs"."""
    layers = keras.layers
    gaussian = keras.initializers.RandomNormal(stddev=settings["stddev"])
    inputs = keras.Input((side, side, 1))
    x = layers.Flatten()(inputs)
    for name in ("first_inputs", "second_inputs", "last_inputs"):
        x = layers.Dense(100, use_bias=not bn, kernel_initializer=gaussian)(x)
        x = BatchNormalization(momentum=settings["momentum"])(x) if bn else x
        x = layers.Activation("linear", name=name)(x)
        x = layers.Activation("sigmoid")(x)
    return keras.Model(inputs, layers.Dense(10, kernel_initializer=gaussian)(x))


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    data = Data(np.round(data.x_train), data.y_train, np.round(data.x_test), data.y_test)
    model = network(data.x_train.shape[1], variant == "with BN", settings)
    probe = keras.Model(model.inputs, model.get_layer("last_inputs").output)

    def measure(model: keras.Model) -> dict[str, Any]:
        unit = predict(probe, data.x_test)[:, 0]
        return {**evaluate(model, data.x_test, data.y_test), "percentiles": np.percentile(unit, PERCENTILES)}

    return train(
        model,
        data,
        optimizer=keras.optimizers.SGD(settings["learning_rate"]),
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        every=settings["every"],
        seed=seed,
        measure=measure,
    )


def draw(results: Results) -> Figure:
    figure, (accuracy, needed, *inputs) = panels(2, 2)
    accuracy_curves(accuracy, results, VARIANTS, f"Test accuracy, {results.seeds} seeds")
    for variant, colour in VARIANTS.items():
        reached = [[steps_to(history, t) for t in SHOWN_TARGETS] for history in results.of(variant)]
        curve(needed, SHOWN_TARGETS, np.array(reached, "float64"), variant, color=colour, marker="o", ms=3)
    needed.set(title="Steps to a given test accuracy", ylabel="training step", yscale="log")
    needed.set_xlabel("test accuracy")
    needed.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    needed.yaxis.set_major_formatter("{x:g}")
    low, high = np.inf, -np.inf
    for axes, (variant, colour) in zip(inputs, VARIANTS.items(), strict=True):
        history = results.of(variant)[0]
        lines = np.array(history["percentiles"]).T
        for line, name in zip(lines, PERCENTILES, strict=True):
            axes.plot(history["step"], line, color=colour, lw=1.8 if name == 50 else 1.0)
            axes.annotate(f" {name}th", (history["step"][-1], line[-1]), va="center", annotation_clip=False)
        axes.fill_between(history["step"], lines[0], lines[-1], color=colour, alpha=0.12, lw=0)
        axes.set(title=f"Input of one sigmoid, last layer, {variant}")
        step_axis(axes, history["step"])
        low, high = min(low, lines.min()), max(high, lines.max())
    for axes in inputs:
        axes.set_ylim(low - 0.3, high + 0.3)
    inputs[0].set_ylabel("15th, 50th and 85th percentile")
    return figure


def table(results: Results) -> str:
    rows = [
        [
            variant,
            *(steps([steps_to(history, target) for history in results.of(variant)]) for target in TARGETS),
            percent(results.values(variant, "accuracy").max(axis=1)),
            percent(results.values(variant, "accuracy")[:, -1]),
        ]
        for variant in VARIANTS
    ]
    return aligned(["", *(f"steps to {t:.0%}" for t in TARGETS), "best accuracy %", "last accuracy %"], rows)


EXPERIMENT = Experiment(
    fast=dict(seeds=1, steps=2000, every=100, batch_size=60, learning_rate=0.5, stddev=0.1, momentum=0.9),
    full=dict(seeds=5, steps=10000, every=50, batch_size=60, learning_rate=0.5, stddev=0.1, momentum=0.9),
    variants=lambda settings: list(VARIANTS),
    run=run,
    draw=draw,
    table=table,
)
