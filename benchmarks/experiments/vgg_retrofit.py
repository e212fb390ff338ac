"""BN inserted into a trained VGG: exactly, the fast.ai way, and naively; then training goes on.

The network learned from half of the training images; fine-tuning has all of them.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import keras_bn
from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import BLACK, BLUE, GREEN, ORANGE, PINK, Figure, curve, loss_axis, panels
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import aligned, percent
from benchmarks.experiments.training import evaluate, predict, train

VARIANTS = {"original": GREEN, "retrofitted": BLUE, "fast.ai way": ORANGE, "naive": PINK}
SHOWN_IMAGES = 20


def network(side: int, settings: Settings) -> keras.Model:
    """A small VGG: pairs of 3x3 convolutions between poolings, two wide dense layers, no BN."""
    layers = keras.layers
    stack = [keras.Input((side, side, 1))]
    for filters in settings["filters"]:
        for _ in range(2):
            stack.append(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        stack.append(layers.MaxPooling2D())
    stack.append(layers.Flatten())
    for i in range(2):
        stack.append(layers.Dense(settings["units"], activation="relu", name=f"fc{i + 1}"))
    return keras.Sequential([*stack, layers.Dense(10)])


def insert(model: keras.Model, variant: str, images: np.ndarray, settings: Settings) -> keras.Model:
    """The model with BN in it as `variant` says; the statistics are those of `images` in all of them.

    "retrofitted": gamma = sqrt(variance + epsilon), beta = mean, before every activation.
    "fast.ai way": gamma = variance, beta = mean, after the activations of the dense layers (the notebook
    imagenet_batchnorm of fastai/courses, 2016).
    "naive": gamma = 1, beta = 0, before every activation.
    """
    if variant == "original":
        return model
    arguments = {"layer_arguments": {"momentum": settings["momentum"]}, "progress": False}
    if variant == "fast.ai way":
        arguments |= {"layers": "fc*", "position": "after_activation"}
    inserted = keras_bn.retrofit(model, images, **arguments).model
    for layer in inserted.layers:
        if isinstance(layer, keras_bn.BatchNormalization):
            if variant == "fast.ai way":
                layer.gamma.assign(layer.moving_variance)
            if variant == "naive":
                layer.gamma.assign(np.ones(layer.gamma.shape))
                layer.beta.assign(np.zeros(layer.beta.shape))
    return inserted


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    half = slice(len(data.x_train) // 2)
    trained = network(data.x_train.shape[1], settings)
    train(
        trained,
        data._replace(x_train=data.x_train[half], y_train=data.y_train[half]),
        optimizer=keras.optimizers.Adam(settings["learning_rate"]),
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        every=settings["steps"],
        seed=seed,
    )
    before = predict(trained, data.x_test)
    result = {"before": {**evaluate(trained, data.x_test, data.y_test), "logits": before[:SHOWN_IMAGES]}}
    weights = trained.get_weights()
    for rate in settings["fine_tuning_rates"]:
        trained.set_weights(weights)
        model = insert(trained, variant, data.x_train[half], settings)
        after = predict(model, data.x_test)
        result["after"] = {"difference": np.abs(after - before).max(), "logits": after[:SHOWN_IMAGES]}
        result[f"fine-tuned at {rate}"] = train(
            model,
            data,
            optimizer=keras.optimizers.SGD(rate, momentum=0.9),
            steps=settings["fine_tuning_steps"],
            batch_size=settings["batch_size"],
            every=settings["every"],
            seed=seed,
        )
    return result


def draw(results: Results) -> Figure:
    rates = results.settings["fine_tuning_rates"]
    figure, (scatter, insertion, *losses) = panels(2, 2)
    for variant, colour in VARIANTS.items():
        first = results.of(variant)[0]
        if variant != "original":
            before, after = np.ravel(first["before"]["logits"]), np.ravel(first["after"]["logits"])
            top = 3 if variant == "retrofitted" else 2
            scatter.plot(before, after, ".", color=colour, ms=4, label=variant, zorder=top)
        at_once = results.values(variant, f"fine-tuned at {rates[0]}", "loss")[:, 0]
        insertion.bar(variant, at_once.mean(), color=colour, width=0.6)
        insertion.plot([variant] * len(at_once), at_once, ".", color=BLACK, ms=4)
        for axes, rate in zip(losses, rates, strict=True):
            key = f"fine-tuned at {rate}"
            curve(axes, first[key]["step"], results.values(variant, key, "loss"), variant, color=colour)
            axes.set(title=f"Fine-tuning at learning rate {rate}", xlabel="fine-tuning step")
            loss_axis(axes)
    scatter.set(title="Outputs at insertion", xlabel="logit of the original", ylabel="logit with BN inserted")
    scatter.legend(loc="upper left")
    insertion.set(title="Test loss at insertion (dots: seeds)", ylabel="test loss")
    limits = [axes.get_ylim() for axes in losses]
    for axes in losses:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    losses[0].legend(loc="upper right")
    return figure


def table(results: Results) -> str:
    rates = results.settings["fine_tuning_rates"]
    rows = []
    for variant in VARIANTS:
        tuned = [results.values(variant, f"fine-tuned at {rate}", "loss") for rate in rates]
        row = [
            variant,
            f"{results.values(variant, 'after', 'difference').max():.3g}",
            percent(results.values(variant, f"fine-tuned at {rates[0]}", "accuracy")[:, 0]),
            f"{results.values(variant, 'before', 'loss').mean():.3f}",
            f"{tuned[0][:, 0].mean():.3f}",
            *(f"{loss[:, -1].mean():.3f}" for loss in tuned),
        ]
        rows.append(row)
    header = ["", "largest logit change", "accuracy % at insertion", "loss before", "loss at insertion"]
    return aligned([*header, *(f"fine-tuned at {rate}" for rate in rates)], rows)


SHARED = dict(
    filters=[16, 32],
    units=128,
    batch_size=64,
    learning_rate=2e-3,
    momentum=0.9,
    every=10,
    fine_tuning_rates=[0.002, 0.02],
)
EXPERIMENT = Experiment(
    fast=dict(SHARED, seeds=1, steps=60, fine_tuning_steps=20),
    full=dict(SHARED, seeds=3, steps=200, fine_tuning_steps=200),
    variants=lambda settings: list(VARIANTS),
    run=run,
    draw=draw,
    table=table,
)
