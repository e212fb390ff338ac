"""Exports at batch size 1 of the same network written as a plain graph and with custom layers.

`python -m benchmarks.custom_layers` builds a network of inverted residuals (MobileNetV2's plan) as a plain
graph of Keras's layers, with its BN layers inside custom layers, and as a subclassed model.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import keras_bn
from benchmarks.candidate import Candidate, by_turns
from benchmarks.networks import images, with_statistics
from benchmarks.runtimes import TENSORFLOW
from benchmarks.timing import machine, table

THREADS = (1, 2)

# Filters, stride and expansion of each block.
BLOCKS = (
    *((16, 1, 1), (24, 2, 6), (24, 1, 6), (32, 2, 6), (32, 1, 6), (32, 1, 6), (64, 2, 6)),
    *((64, 1, 6), (64, 1, 6), (64, 1, 6), (96, 1, 6), (96, 1, 6), (160, 2, 6), (160, 1, 6), (320, 1, 6)),
)
TEXT = """
Milliseconds of one 224x224 image (median) in exports of `keras_bn.export`, and the ratio to the plain graph
with the same number of intra-op and inter-op threads. Each has a process of its own, and all take turns.
"""


class InvertedResidual(layers.Layer):
    """The block of MobileNetV2, with its layers made in `build`."""

    def __init__(self, filters: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.filters, self.stride, self.expansion = filters, stride, expansion

    def build(self, shape: Any) -> None:
        self.expand = layers.Conv2D(shape[-1] * self.expansion, 1, use_bias=False)
        self.depthwise = layers.DepthwiseConv2D(3, self.stride, padding="same", use_bias=False)
        self.project = layers.Conv2D(self.filters, 1, use_bias=False)
        self.norms = [layers.BatchNormalization() for _ in range(3)]

    def call(self, x: Any) -> Any:
        first, second, third = self.norms
        y = ops.relu6(first(self.expand(x)))
        y = third(self.project(ops.relu6(second(self.depthwise(y)))))
        return x + y if x.shape == y.shape else y


def inverted_residual(x: Any, filters: int, stride: int, expansion: int) -> Any:
    """The same block as a plain graph."""
    y = layers.Conv2D(x.shape[-1] * expansion, 1, use_bias=False)(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(filters, 1, use_bias=False)(y))
    return layers.Add()([x, y]) if x.shape == y.shape else y


def _around(blocks: Callable[[Any], Any]) -> keras.Model:
    inputs = keras.Input((224, 224, 3))
    x = layers.Conv2D(32, 3, 2, padding="same", use_bias=False)(inputs)
    x = blocks(layers.ReLU(6.0)(layers.BatchNormalization()(x)))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(1280, 1, use_bias=False)(x)))
    return keras.Model(inputs, layers.Dense(1000)(layers.GlobalAveragePooling2D()(x)))


def plain() -> keras.Model:
    def blocks(x: Any) -> Any:
        for block in BLOCKS:
            x = inverted_residual(x, *block)
        return x

    return _around(blocks)


def custom_layers() -> keras.Model:
    def blocks(x: Any) -> Any:
        for block in BLOCKS:
            x = InvertedResidual(*block)(x)
        return x

    return _around(blocks)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = (
            layers.Conv2D(32, 3, 2, padding="same", use_bias=False),
            layers.BatchNormalization(),
        )
        self.blocks = [InvertedResidual(*block) for block in BLOCKS]
        self.top, self.top_bn = layers.Conv2D(1280, 1, use_bias=False), layers.BatchNormalization()
        self.pool, self.classes = layers.GlobalAveragePooling2D(), layers.Dense(1000)

    def call(self, x: Any) -> Any:
        x = ops.relu6(self.stem_bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.classes(self.pool(ops.relu6(self.top_bn(self.top(x)))))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 224, 224, 3), "float32"))
    return model


VARIANTS: dict[str, Callable[[], keras.Model]] = {
    "plain": plain,
    "custom layers": custom_layers,
    "subclassed model": subclassed,
}


def main() -> None:
    print(machine())
    print(TEXT)
    print(table(["written as", *(f"{count}/{count}" for count in THREADS), "export s"], _rows()))


def _rows() -> list[list[str]]:
    examples = np.random.default_rng(1).uniform(-1, 1, (4, 224, 224, 3)).astype(np.float32)
    paths, took = {}, {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        image = Path(folder) / "image.npy"
        np.save(image, images(1))
        for variant, make in VARIANTS.items():
            model, start = with_statistics(make()), time.perf_counter()
            paths[variant] = keras_bn.export(model, Path(folder) / variant, examples=examples)
            took[variant] = time.perf_counter() - start
            keras.backend.clear_session()
        candidates = {
            f"{variant} {count}": stack.enter_context(
                contextlib.closing(Candidate(TENSORFLOW, path, count, image))
            )
            for variant, path in paths.items()
            for count in THREADS
        }
        seconds = by_turns(candidates, rounds=10, calls=16)

    def cell(variant: str, count: int) -> str:
        own, base = seconds[f"{variant} {count}"], seconds[f"plain {count}"]
        return f"{1e3 * own:.1f} ({own / base:.2f})"

    return [
        [variant, *(cell(variant, count) for count in THREADS), f"{took[variant]:.1f}"]
        for variant in VARIANTS
    ]


if __name__ == "__main__":
    main()
