"""Where BN fails as batches shrink, and what helps: the test accuracy of one network by batch size.

Every run sees the same number of images. The learning rate is proportional to the batch size (Goyal et al.,
1706.02677), and moving averages reach back over the same number of images, so that what remains is the batch
that BN normalizes by.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

import keras_bn
from benchmarks.experiments.data import Data
from benchmarks.experiments.experiment import Experiment, Settings
from benchmarks.experiments.plots import (
    BLACK,
    BLUE,
    BROWN,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    Figure,
    curve,
    panels,
    percent_axis,
)
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import aligned
from benchmarks.experiments.training import evaluate, train

NETWORKS = ("dense", "convolutional")
RECALIBRATED = "BN, recalibrated"
ACCUMULATED = "CmBN, accumulated"
WINDOWS = {"Cross-Iteration BN, 4": 4, "Cross-Iteration BN, 8": 8}
OF_THE_BATCH = {
    "BN": BLUE,
    RECALIBRATED: BLUE,
    "Batch Renormalization": GREEN,
    "ghost BN": RED,
    ACCUMULATED: PINK,
    **dict.fromkeys(WINDOWS, BROWN),
}
OF_THE_EXAMPLE = {
    "no normalization": BLACK,
    "LayerNormalization": ORANGE,
    "GroupNormalization": GREY,
    "instance norm": SKY,
}
SHOWN = {**OF_THE_BATCH, **OF_THE_EXAMPLE}
DASHED = (RECALIBRATED, "Cross-Iteration BN, 8")
TRAINED = [name for name in SHOWN if name != RECALIBRATED]

# Takes what makes a linear layer, returns the layer and its normalization.
Block = Callable[[Callable[..., keras.Layer]], list[keras.Layer]]


def block(name: str, batch_size: int, steps: int, settings: Settings) -> Block:
    """The normalization called `name`, for training with so many steps of that batch size."""
    momentum = settings["momentum_at_32"] ** (batch_size / 32)
    warm, relaxed = steps // 8, steps // 2
    window = settings["window"]
    if name in WINDOWS:
        return lambda linear: [
            keras_bn.CrossIterationNormalization(
                linear(use_bias=False),
                WINDOWS[name],
                burn_in=warm,
                normalization=keras_bn.BatchNormalization(momentum=momentum),
            )
        ]
    make = {
        "BN": lambda: keras_bn.BatchNormalization(momentum=momentum),
        "Batch Renormalization": lambda: keras_bn.BatchRenormalization(
            r_max=[(warm, 1.0), (relaxed, 3.0)], d_max=[(warm, 0.0), (relaxed, 5.0)], momentum=momentum
        ),
        "ghost BN": lambda: keras_bn.GhostBatchNormalization(settings["ghost_size"], momentum=momentum),
        ACCUMULATED: lambda: keras_bn.AccumulatedBatchNormalization(window, momentum=momentum**window),
        "no normalization": lambda: keras.layers.Identity(),
        "LayerNormalization": lambda: keras.layers.LayerNormalization(),
        "GroupNormalization": lambda: keras.layers.GroupNormalization(settings["groups"]),
        "instance norm": lambda: keras.layers.GroupNormalization(-1),
    }[name]
    return lambda linear: [linear(), make()]


def network(kind: str, side: int, normalized: Block, settings: Settings) -> keras.Model:
    layers = keras.layers
    stack = [keras.Input((side, side, 1))]
    if kind == "dense":
        stack += [layers.Flatten()]
        for units in settings["units"]:
            stack += [*normalized(partial(layers.Dense, units)), layers.ReLU()]
        return keras.Sequential([*stack, layers.Dense(10)])
    for filters in settings["filters"]:
        convolution = partial(layers.Conv2D, filters, 3, padding="same")
        stack += [*normalized(convolution), layers.ReLU(), layers.MaxPooling2D()]
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(10)])


def run(variant: str, seed: int, settings: Settings, data: Data) -> dict[str, Any]:
    """The last test accuracy for every batch size, None where the layer refuses to train.

    For BN also that after recalibration on training images.
    """
    kind, name = variant.split(": ")
    result: dict[str, list[float | None]] = {"accuracy": [], **({RECALIBRATED: []} if name == "BN" else {})}
    for batch_size in settings["batch_sizes"]:
        steps = settings["epochs"] * len(data.x_train) // batch_size
        normalized = block(name, batch_size, steps, settings)
        if kind == "dense" and refuses(normalized, batch_size):
            for accuracies in result.values():
                accuracies.append(None)
            continue
        model = network(kind, data.x_train.shape[1], normalized, settings)
        history = train(
            model,
            data,
            optimizer=optimizer(name, batch_size, settings),
            steps=steps,
            batch_size=batch_size,
            every=steps,
            seed=seed,
        )
        result["accuracy"].append(history["accuracy"][-1])
        if name == "BN":
            recalibrated = keras_bn.recalibrate(
                model, data.x_train[:1000], batch_size=1000, progress=False
            ).model
            result[RECALIBRATED].append(evaluate(recalibrated, data.x_test, data.y_test)["accuracy"])
    return result


def optimizer(name: str, batch_size: int, settings: Settings) -> keras.optimizers.Optimizer:
    """SGD with momentum; for CmBN a step for every `window` batches, as many times larger."""
    window = settings["window"] if name == ACCUMULATED else 1
    return keras.optimizers.SGD(
        settings["learning_rate_at_32"] * window * batch_size / 32,
        momentum=0.9,
        gradient_accumulation_steps=window if window > 1 else None,
    )


def refuses(normalized: Block, batch_size: int) -> bool:
    """Whether the layer refuses to train behind a dense layer: one value per channel has no variance."""
    try:
        layers = normalized(partial(keras.layers.Dense, 8))
        keras.Sequential(layers)(np.zeros((batch_size, 8), "float32"), training=True)
    except keras_bn.KerasBNError:
        return True
    return False


def variants(settings: Settings) -> list[str]:
    # Instance norm of a dense layer would have one value to normalize by.
    return [
        f"{kind}: {name}"
        for kind in NETWORKS
        for name in TRAINED
        if (kind, name) != ("dense", "instance norm")
    ]


def accuracy(results: Results, kind: str, name: str) -> np.ndarray:
    """Test accuracies `(seeds, batch sizes)` of what the figure and the table call `name`."""
    if name == RECALIBRATED:
        return results.values(f"{kind}: BN", RECALIBRATED)
    return results.values(f"{kind}: {name}", "accuracy")


def draw(results: Results) -> Figure:
    figure, axes = panels(2, 2, sharey=True, sharex=True)
    sizes = results.settings["batch_sizes"]
    for i, kind in enumerate(NETWORKS):
        for panel, title, colours in (
            (axes[2 * i], "normalized over the batch", OF_THE_BATCH),
            (axes[2 * i + 1], "normalized within the example", {"BN": BLUE, **OF_THE_EXAMPLE}),
        ):
            for name, colour in colours.items():
                if name == RECALIBRATED or f"{kind}: {name}" in results.variants:
                    style = {"color": colour, "ls": "--" if name in DASHED else "-"}
                    runs = accuracy(results, kind, name)
                    curve(panel, sizes, runs, name, marker="o", ms=3, **style)
            panel.set_title(f"{kind.capitalize()}, {title}")
            panel.set_xscale("log", base=2)
            panel.set_xticks(sizes, [str(size) for size in sizes])
            percent_axis(panel)
    for panel in (axes[0], axes[3]):  # where each column has all its lines, and room
        panel.legend(loc="lower right")
    for panel in axes[2:]:
        panel.set_xlabel("batch size")
    axes[0].set_ylim(0.7, 1.01)  # one point of the full setting is below: CmBN at 128, which is in the table
    axes[0].set_yticks([0.7, 0.8, 0.9, 1.0])
    return figure


def table(results: Results) -> str:
    """Means over seeds, "refused" where the layer did not train."""
    header = ["accuracy % at batch size", *map(str, results.settings["batch_sizes"])]
    rows = []
    for kind in NETWORKS:
        for name in SHOWN:
            if name == RECALIBRATED or f"{kind}: {name}" in results.variants:
                columns = accuracy(results, kind, name).T
                cells = ("refused" if np.isnan(c).any() else f"{100 * c.mean():.1f}" for c in columns)
                rows.append([f"{kind}: {name}", *cells])
    return aligned(header, rows)


SHARED = dict(
    units=[100, 100, 100],
    filters=[16, 32, 64],
    learning_rate_at_32=0.01,
    momentum_at_32=0.9,
    ghost_size=8,
    window=8,
    groups=4,
)
EXPERIMENT = Experiment(
    fast=dict(SHARED, seeds=1, epochs=1, batch_sizes=[32]),
    full=dict(SHARED, seeds=2, epochs=8, batch_sizes=[1, 2, 4, 8, 32, 128]),
    variants=variants,
    run=run,
    draw=draw,
    table=table,
)
