"""A trained network on shifted images: statistics of the source, of few new images, and of both.

`recalibrate(prior=n)` mixes the statistics of the source with new ones (Schneider et al., 2006.16971).
Every kind of shift is applied to the test images at five strengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_bn
from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import BLUE, GREEN, GREY, ORANGE, Figure, panels, percent_axis
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import aligned, percent
from benchmarks.experiments.training import evaluate, train

SOURCE, MIXED, NEW, BATCH = (
    "source statistics",
    "mixed, prior of 16 images",
    "recalibrated",
    "moments of the test batch",
)
COLOURS = {SOURCE: GREY, MIXED: BLUE, NEW: GREEN, BATCH: ORANGE}
KINDS = ("noise", "contrast", "rotation", "blur")
PRIOR_IMAGES = 16


def shifted(images: np.ndarray, kind: str, strength: int) -> np.ndarray:
    """The images `(n, side, side, 1)` under a shift of strength 1 to 5."""
    from scipy import ndimage  # comes with scikit-learn

    if kind == "noise":
        return images + np.random.default_rng(strength).normal(0, 0.12 * strength, images.shape)
    if kind == "contrast":
        return 0.5 + (images - 0.5) * (1 - 0.16 * strength)
    if kind == "rotation":
        return ndimage.rotate(images, 8 * strength, axes=(1, 2), reshape=False, order=1)
    return ndimage.gaussian_filter(images, (0, 0.2 * strength, 0.2 * strength, 0))


def network(side: int, settings: Settings) -> keras.Model:
    """Convolutions that all see the whole image, so an image has side² values per channel in every layer."""
    layers = keras.layers
    stack = [keras.Input((side, side, 1))]
    for filters in settings["filters"]:
        stack += [layers.Conv2D(filters, 3, padding="same", use_bias=False)]
        stack += [keras_bn.BatchNormalization(momentum=0.9), layers.ReLU()]
    return keras.Sequential([*stack, layers.GlobalMaxPooling2D(), layers.Dense(10)])


def run(kind: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    side = data.x_train.shape[1]
    model = network(side, settings)
    train(
        model,
        data,
        optimizer=keras.optimizers.Adam(settings["learning_rate"]),
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        every=settings["steps"],
        seed=seed,
    )
    adapted, in_batches = keras_bn.convert(model).model, _normalizing_by_the_batch(model)
    result: dict[str, Any] = {
        "clean": evaluate(model, data.x_test, data.y_test)["accuracy"],
        **{method: {str(n): [] for n in settings["examples"]} for method in COLOURS},
    }
    for strength in settings["strengths"]:
        images = shifted(data.x_test, kind, strength).astype("float32")
        order = np.random.default_rng(seed).permutation(len(images))
        for n in settings["examples"]:
            new, rest = images[order[:n]], images[order[n:]]
            labels = data.y_test[order[n:]]
            result[SOURCE][str(n)].append(evaluate(model, rest, labels)["accuracy"])
            for method, prior in ((MIXED, PRIOR_IMAGES * side**2), (NEW, 0)):
                recalibrated = keras_bn.recalibrate(model, new, prior=prior, progress=False).model
                adapted.set_weights(recalibrated.get_weights())  # one model, so that it is compiled once
                result[method][str(n)].append(evaluate(adapted, rest, labels)["accuracy"])
            result[BATCH][str(n)].append(_accuracy_in_batches(in_batches, rest, labels, n))
    return result


def _normalizing_by_the_batch(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    copy = keras_bn.convert(model).model
    for layer in copy.layers:
        if isinstance(layer, keras_bn.BatchNormalization):
            layer.momentum = 1.0  # moments of the batch, and statistics that do not change
    compiled = tf.function(lambda images: copy(images, training=True), reduce_retracing=True)
    return lambda images: compiled(tf.constant(images)).numpy()


def _accuracy_in_batches(
    logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, labels: np.ndarray, size: int
) -> float:
    """The accuracy in batches of `size` images, without the last if it is short."""
    usable = len(images) - len(images) % size
    logits = np.concatenate([logits_of(images[i : i + size]) for i in range(0, usable, size)])
    return float(np.mean(logits.argmax(1) == labels[:usable]))


def draw(results: Results) -> Figure:
    figure, axes = panels(columns=2, rows=2, sharey=True)
    n = str(results.settings["examples"][len(results.settings["examples"]) // 2])
    for axis, kind in zip(axes, KINDS, strict=True):
        for method, colour in COLOURS.items():
            axis.plot(
                results.settings["strengths"],
                results.values(kind, method, n).mean(0),
                "o-",
                color=colour,
                label=method,
            )
        axis.set_title(f"{kind}, {n} new images")
        axis.set_xticks(results.settings["strengths"])
        percent_axis(axis)
    for axis in axes[2:]:
        axis.set_xlabel("strength")
    axes[0].legend(loc="lower left")
    return figure


def table(results: Results) -> str:
    """Accuracy by method and number of new images, over all kinds and strengths."""
    header = ["", *("1 image" if n == 1 else f"{n} images" for n in results.settings["examples"])]
    rows = [
        [
            method,
            *(
                percent(
                    np.mean([results.values(kind, method, str(n)).mean(1) for kind in results.variants], 0)
                )
                for n in results.settings["examples"]
            ),
        ]
        for method in COLOURS
    ]
    return aligned(header, rows)


SHARED = dict(filters=[16, 16, 16], batch_size=64, learning_rate=3e-3)
EXPERIMENT = Experiment(
    fast=dict(SHARED, seeds=1, steps=60, strengths=[3], examples=[4]),
    full=dict(SHARED, seeds=2, steps=400, strengths=[1, 2, 3, 4, 5], examples=[1, 4, 16, 64]),
    variants=lambda settings: list(KINDS),
    run=run,
    draw=draw,
    table=table,
)
