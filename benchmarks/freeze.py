"""The cost of fine-tuning with frozen statistics: `keras_bn.freeze` and its alternatives.

`python -m benchmarks.freeze [--backend tensorflow|jax|torch] [--fast]` prints, for ResNet50 and MobileNetV2,
the time of a training step and the memory it takes on top of the model:

- `frozen BN`: `keras_bn.BatchNormalization(frozen_statistics=True)`
- `Keras's`: `keras.layers.BatchNormalization` called with training=False
- `freeze`: `keras_bn.freeze`
- `no BN`: folded into the weights and gone, the floor

Times are medians of steps that take turns in one process. Memory is measured in a process of its own for
each: the peak of its resident memory (VmHWM of /proc/self/status) during two steps, less what was resident
before the first. That includes the gradients, and what the compiler and the allocator keep.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NETWORKS = {"ResNet50": 16, "MobileNetV2": 16}
NAMES = ("frozen BN", "Keras's", "freeze", "no BN")
SIDE = 192


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.freeze")
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--fast", action="store_true", help="two rounds at 96 pixels")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ["KERAS_BACKEND"] = options.backend  # read when Keras is imported, in what follows
    if options.memory_of:
        network, name, side = options.memory_of
        print(step_memory(network, name, int(side)))
        return
    from benchmarks.timing import machine, table

    side, rounds = (96, 2) if options.fast else (SIDE, 7)
    print(machine())
    print(f"\nOne training step on {options.backend}, images of {side}x{side}, ratios to frozen BN.\n")
    rows = []
    for network, batch in NETWORKS.items():
        seconds = step_times(network, side, rounds)
        memory = {name: _memory_apart(options.backend, network, name, side) for name in NAMES}
        for name in NAMES:
            rows.append(
                [
                    f"{network}, batch of {batch}",
                    name,
                    f"{seconds[name]:.2f}",
                    f"{seconds[name] / seconds['frozen BN']:.2f}",
                    f"{memory[name] / 1024:.0f}",
                    f"{memory[name] / memory['frozen BN']:.2f}",
                ]
            )
    print(table(["network", "", "seconds", "ratio", "MB", "ratio"], rows))


def step_times(network: str, side: int, rounds: int) -> dict[str, float]:
    """Median seconds of a training step of each variant."""
    from benchmarks.timing import interleaved, pin_threads

    pin_threads()
    return interleaved({name: training_step(network, name, side) for name in NAMES}, rounds, warmup=2)


def step_memory(network: str, name: str, side: int) -> int:
    """Kilobytes that two training steps take on top of the model, in a fresh process."""
    from benchmarks.timing import pin_threads

    pin_threads()
    step = training_step(network, name, side)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
    step()
    step()
    return _resident("VmHWM") - before


def training_step(network: str, name: str, side: int) -> Callable[[], object]:
    """A step of SGD of a network with one kind of frozen BN."""
    import keras
    import numpy as np

    model = variant(network, name, side)
    model.compile(keras.optimizers.SGD(1e-4), keras.losses.SparseCategoricalCrossentropy())
    rng = np.random.default_rng(0)
    images = rng.normal(size=(NETWORKS[network], side, side, 3)).astype("float32")
    labels = rng.integers(0, 1000, NETWORKS[network])
    return lambda: model.train_on_batch(images, labels)


def variant(network: str, name: str, side: int) -> Any:
    """The network with one kind of frozen BN."""
    import keras

    import keras_bn

    class Untrained(keras.layers.BatchNormalization):
        def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            return super().call(inputs, training=False, mask=mask)

    model = getattr(keras.applications, network)(weights=None, input_shape=(side, side, 3))
    if name == "Keras's":
        return keras.models.clone_model(
            model,
            clone_function=lambda layer: (
                Untrained if isinstance(layer, keras.layers.BatchNormalization) else type(layer)
            ).from_config(layer.get_config()),
        )
    if name == "freeze":
        return keras_bn.freeze(model).model
    if name == "no BN":
        return keras_bn.fold(model).model
    converted = keras_bn.convert(model).model
    for layer in converted.layers:
        if isinstance(layer, keras_bn.BatchNormalization):
            layer.frozen_statistics = True
    return converted


def _memory_apart(backend: str, network: str, name: str, side: int) -> int:
    command = [sys.executable, "-m", "benchmarks.freeze", "--backend", backend]
    command += ["--memory-of", network, name, str(side)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def _resident(entry: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry))


if __name__ == "__main__":
    main(sys.argv[1:])
