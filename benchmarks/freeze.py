"""The cost of fine-tuning with frozen statistics: `keras_bn.freeze` and its alternatives.

`python -m benchmarks.freeze [--backend tensorflow|jax|torch] [--network NAME] [--fast]` prints, for ResNet50
and MobileNetV2, the time of a training step and the memory it takes on top of the model:

- `frozen BN`: `keras_bn.BatchNormalization(frozen_statistics=True)`
- `Keras's`: `keras.layers.BatchNormalization` called with training=False
- `freeze`: `keras_bn.freeze`
- `no BN`: folded into the weights and gone, the floor

Each is trained in a process of its own, and the processes take turns, a step at a time and in random order.
Times are medians. Memory is the peak of the resident memory (VmHWM of /proc/self/status) during two steps,
less what was resident before the first step. A step before these two compiles, and what it freed is given
back, so what the compiler takes for a moment is not counted.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NETWORKS = {"ResNet50": 16, "MobileNetV2": 16}
NAMES = ("frozen BN", "Keras's", "freeze", "no BN")
SIDE, ROUNDS = 192, 11


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.freeze")
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="all if it is not given")
    parser.add_argument("--fast", action="store_true", help="two rounds at 96 pixels")
    parser.add_argument("--steps-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ["KERAS_BACKEND"] = options.backend  # read when Keras is imported, in what follows
    if options.steps_of:
        network, name, side = options.steps_of
        take_turns(network, name, int(side))
        return
    from benchmarks.timing import machine, table

    side, rounds = (96, 2) if options.fast else (SIDE, ROUNDS)
    print(machine())
    print(f"\nOne training step on {options.backend}, images of {side}x{side}, ratios to frozen BN.\n")
    rows = []
    for network in options.network or NETWORKS:
        seconds, memory = measured(options.backend, network, side, rounds)
        for name in NAMES:
            rows.append(
                [
                    f"{network}, batch of {NETWORKS[network]}",
                    name,
                    f"{seconds[name]:.2f}",
                    f"{seconds[name] / seconds['frozen BN']:.2f}",
                    f"{memory[name] / 1024:.0f}",
                    f"{memory[name] / memory['frozen BN']:.2f}",
                ]
            )
    print(table(["network", "", "seconds", "ratio", "MB", "ratio"], rows))


def measured(backend: str, network: str, side: int, rounds: int) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds and kilobytes of a training step of each variant."""
    command = [sys.executable, "-m", "benchmarks.freeze", "--backend", backend, "--steps-of", network]
    processes = {
        name: subprocess.Popen(
            [*command, name, str(side)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in NAMES
    }
    try:
        memory = {name: int(_line(process)) for name, process in processes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in NAMES}
        shuffled = random.Random(0)
        for _ in range(rounds):
            for name in shuffled.sample(NAMES, len(NAMES)):
                processes[name].stdin.write("step\n")  # type: ignore[union-attr]
                processes[name].stdin.flush()  # type: ignore[union-attr]
                seconds[name].append(float(_line(processes[name])))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return {name: statistics.median(values) for name, values in seconds.items()}, memory


def _line(process: subprocess.Popen[str]) -> str:
    """The next line of a process that is meant for this one."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("result "):
            return line.split()[1]
    raise RuntimeError(f"A process ended with {process.wait()}.")


def take_turns(network: str, name: str, side: int) -> None:
    """Print the kilobytes of a training step, then the seconds of one for each line of the input."""
    from benchmarks.timing import pin_threads

    pin_threads()
    step = training_step(network, name, side)
    before = _resident("VmRSS")
    step()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
    step()
    step()
    print("result", _resident("VmHWM") - before, flush=True)
    gc.disable()
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print("result", time.perf_counter() - start, flush=True)


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


def _resident(entry: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry))


if __name__ == "__main__":
    main(sys.argv[1:])
