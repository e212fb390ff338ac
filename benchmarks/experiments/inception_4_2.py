"""Section 4.2 of the paper in small: an Inception-style network, plain and accelerated by BN.

The changes from variant to variant are the paper's (4.2.1): the learning rates, no dropout, no local
response normalization, a fifth of the L2 weight, a learning rate that decays six times faster. Photometric
distortions and within-shard shuffling have no counterpart here. The plain network's learning rate is the best
of 0.003, 0.01, 0.03, 0.1 for it; at 0.3 it does not train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import BLUE, GREEN, ORANGE, PINK, RED, Figure, accuracy_curves, panels
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import aligned, percent, steps
from benchmarks.experiments.training import steps_to, train
from keras_bn import BatchNormalization


@dataclass(frozen=True)
class Variant:
    """A row of the paper's figure 3: how it is trained, and what the paper reports for it."""

    bn: bool
    rate_factor: float
    accelerated: bool
    activation: str
    colour: str
    paper_steps: str
    paper_accuracy: str


VARIANTS = {
    "Inception": Variant(False, 1, False, "relu", ORANGE, "31.0M", "72.2"),
    "BN-Baseline": Variant(True, 1, False, "relu", GREEN, "13.3M", "72.7"),
    "BN-x5": Variant(True, 5, True, "relu", BLUE, "2.1M", "73.0"),
    "BN-x30": Variant(True, 30, True, "relu", RED, "2.7M", "74.8"),
    "BN-x5-Sigmoid": Variant(True, 5, True, "sigmoid", PINK, "never", "69.8"),
}


@keras.saving.register_keras_serializable(package="keras_bn.benchmarks")
class LocalResponseNormalization(keras.layers.Layer):
    """Across channels, with the constants of GoogLeNet (radius 5, bias 1, alpha 1e-4, beta 0.75)."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.local_response_normalization(inputs, depth_radius=5, bias=1.0, alpha=1e-4, beta=0.75)


def network(side: int, variant: Variant, settings: Settings) -> keras.Model:
    layers = keras.layers
    l2 = keras.regularizers.L2(settings["l2"] / (5 if variant.accelerated else 1))
    width = settings["width"]

    def conv(x: keras.KerasTensor, filters: int, size: int) -> keras.KerasTensor:
        x = layers.Conv2D(filters, size, padding="same", use_bias=not variant.bn, kernel_regularizer=l2)(x)
        x = BatchNormalization(momentum=settings["momentum"])(x) if variant.bn else x
        return layers.Activation(variant.activation)(x)

    def inception(x: keras.KerasTensor) -> keras.KerasTensor:
        """A module with the paper's double 3x3 in place of GoogLeNet's 5x5."""
        pooled = layers.AveragePooling2D(3, strides=1, padding="same")(x)
        return layers.Concatenate()(
            [
                conv(x, width, 1),
                conv(conv(x, width, 1), width, 3),
                conv(conv(conv(x, width, 1), width, 3), width, 3),
                conv(pooled, width, 1),
            ]
        )

    inputs = keras.Input((side, side, 1))
    x = conv(inputs, 2 * width, 3)
    x = x if variant.accelerated else LocalResponseNormalization()(x)
    x = inception(x)
    x = layers.MaxPooling2D()(x)
    x = inception(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = x if variant.accelerated else layers.Dropout(settings["dropout"])(x)
    return keras.Model(inputs, layers.Dense(10, kernel_regularizer=l2)(x))


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    chosen = VARIANTS[variant]
    schedule = keras.optimizers.schedules.ExponentialDecay(
        chosen.rate_factor * settings["learning_rate"],
        decay_steps=settings["steps"] / (6 if chosen.accelerated else 1),
        decay_rate=settings["decay"],
    )
    return train(
        network(data.x_train.shape[1], chosen, settings),
        data,
        optimizer=keras.optimizers.SGD(schedule, momentum=0.9),
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        every=settings["every"],
        seed=seed,
    )


def plain_best(results: Results) -> float:
    """The best test accuracy of the plain network, mean of the seeds: the paper's 72.2%."""
    return float(results.values("Inception", "accuracy").max(axis=1).mean())


def draw(results: Results) -> Figure:
    figure, (axes,) = panels()
    colours = {name: variant.colour for name, variant in VARIANTS.items()}
    axes.axhline(plain_best(results), color=ORANGE, lw=0.8, ls="--", label="Inception's best")
    accuracy_curves(axes, results, colours, "Inception-style network on small images")
    return figure


def table(results: Results) -> str:
    target = plain_best(results)
    rows = [
        [
            name,
            steps([steps_to(history, target) for history in results.of(name)]),
            percent(results.values(name, "accuracy").max(axis=1)),
            variant.paper_steps,
            variant.paper_accuracy,
        ]
        for name, variant in VARIANTS.items()
    ]
    header = ["", f"steps to {target:.1%}", "best accuracy %", "paper: steps to 72.2%", "paper: best %"]
    return aligned(header, rows)


SHARED = dict(
    width=8, batch_size=32, learning_rate=0.1, decay=0.3, l2=1e-4, dropout=0.4, momentum=0.9, every=20
)
EXPERIMENT = Experiment(
    fast=dict(SHARED, seeds=1, steps=40),
    full=dict(SHARED, seeds=3, steps=1000),
    variants=lambda settings: list(VARIANTS),
    run=run,
    draw=draw,
    table=table,
)
