"""BN of a trained network exchanged for group normalization, in three ways; then training goes on.

"ones and zeros" is how the ModuleValidator of Opacus makes group normalization of BN: gamma 1, beta 0. "gamma
and beta kept" and "calibrated" are `keras_bn.convert(model, to="group")` without and with data.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import keras_bn
from benchmarks.experiments import vgg_retrofit
from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import BLUE, GREEN, ORANGE, PINK, Figure, curve, loss_axis, panels
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import aligned, percent, steps
from benchmarks.experiments.training import evaluate, steps_to, train

NETWORKS = ("retrofitted VGG", "CNN with BN")
WAYS = {"BN": GREEN, "ones and zeros": ORANGE, "gamma and beta kept": PINK, "calibrated": BLUE}
TARGET = 0.97


def network(name: str, side: int, settings: Settings) -> keras.Model:
    """The network before training: the VGG has no BN yet."""
    if name == "retrofitted VGG":
        return vgg_retrofit.network(side, settings)
    layers = keras.layers
    stack = [keras.Input((side, side, 1))]
    for filters in settings["filters"]:
        for _ in range(2):
            stack.append(layers.Conv2D(filters, 3, padding="same", use_bias=False))
            stack += [layers.BatchNormalization(momentum=settings["momentum"]), layers.ReLU()]
        stack.append(layers.MaxPooling2D())
    stack += [layers.Flatten(), layers.Dense(settings["units"])]
    stack += [layers.BatchNormalization(momentum=settings["momentum"]), layers.ReLU()]
    return keras.Sequential([*stack, layers.Dense(10)])


def exchanged(model: keras.Model, way: str, images: np.ndarray) -> keras.Model:
    """The model with its BN exchanged as `way` says."""
    if way == "BN":
        return model
    result = keras_bn.convert(model, to="group", data=images if way == "calibrated" else None).model
    if way == "ones and zeros":
        for layer in result.layers:
            if isinstance(layer, (keras.layers.GroupNormalization, keras.layers.LayerNormalization)):
                layer.gamma.assign(np.ones(layer.gamma.shape))
                layer.beta.assign(np.zeros(layer.beta.shape))
    return result


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    name, way = variant.split(": ")
    model = network(name, data.x_train.shape[1], settings)
    options = {"batch_size": settings["batch_size"], "seed": seed}
    optimizer = keras.optimizers.Adam(settings["learning_rate"])
    train(model, data, optimizer=optimizer, steps=settings["steps"], every=settings["steps"], **options)
    images = data.x_train[: settings["calibrated_on"]]
    if name == "retrofitted VGG":
        model = keras_bn.retrofit(model, images, progress=False).model
    before = evaluate(model, data.x_test, data.y_test)
    new = exchanged(model, way, images)
    optimizer = keras.optimizers.SGD(settings["fine_tuning_rate"], momentum=0.9)
    history = train(
        new,
        data,
        optimizer=optimizer,
        steps=settings["fine_tuning_steps"],
        every=settings["every"],
        **options,
    )
    return {"before": before, **history}


def draw(results: Results) -> Figure:
    figure, panel = panels(2)
    for axes, name in zip(panel, NETWORKS, strict=True):
        for way, colour in WAYS.items():
            variant = f"{name}: {way}"
            curve(axes, results.of(variant)[0]["step"], results.values(variant, "loss"), way, color=colour)
        axes.set(title=name, xlabel="step of training on")
        loss_axis(axes)
    panel[0].legend(loc="upper right")
    return figure


def table(results: Results) -> str:
    rows = []
    for variant in _variants():
        loss, accuracy = (results.values(variant, key) for key in ("loss", "accuracy"))
        rows.append(
            [
                variant,
                f"{results.values(variant, 'before', 'loss').mean():.3f}",
                f"{loss[:, 0].mean():.3f}",
                percent(accuracy[:, 0]),
                steps([steps_to(history, TARGET) for history in results.of(variant)]),
                percent(accuracy[:, -1]),
            ]
        )
    header = ["", "loss before", "loss at the start", "accuracy % at the start", f"steps to {TARGET:.0%}"]
    return aligned([*header, "last accuracy %"], rows)


def _variants() -> list[str]:
    return [f"{name}: {way}" for name in NETWORKS for way in WAYS]


SHARED = dict(
    filters=[16, 32],
    units=128,
    batch_size=64,
    learning_rate=2e-3,
    momentum=0.9,
    calibrated_on=256,
    fine_tuning_rate=0.01,
    every=2,
)
EXPERIMENT = Experiment(
    fast=dict(SHARED, seeds=1, steps=60, fine_tuning_steps=20),
    full=dict(SHARED, seeds=2, steps=200, fine_tuning_steps=100),
    variants=lambda settings: _variants(),
    run=run,
    draw=draw,
    table=table,
)
