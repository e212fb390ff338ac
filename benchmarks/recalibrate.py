"""Recalibration and inspection beside `Model.predict` on the same backend.

    python -m benchmarks.recalibrate                     every backend, each in a process of its own
    python -m benchmarks.recalibrate --backend torch     one of them

The time per image is that of a pass that is under way: between one batch and the next, the first batch of
each pass left out, for it waits for what is traced or compiled. Once is what else a call takes, however few
the images: copying the model, tracing or compiling it. `sequential` makes a pass for each level of layers, of
which each runs a part of the network; `inspect` runs the network twice, and its figure is that of both runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

BACKENDS = ("tensorflow", "jax", "torch")
NETWORKS = ("MobileNetV2", "ResNet50")
SIDE, BATCH = 96, 32
BATCHES = 16  # TensorFlow compiles nothing for eight or fewer
HEADER = ["", "per image", "per image / predict", "once, s", "once in the first call, s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--network", choices=NETWORKS, help="one of them instead of both")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.backend is None:
        for backend in BACKENDS:
            print(f"### {backend}\n", flush=True)
            command = [sys.executable, "-m", "benchmarks.recalibrate", *sys.argv[1:], "--backend", backend]
            subprocess.run(command, check=True)
            print(flush=True)
        return
    os.environ["KERAS_BACKEND"] = arguments.backend
    from benchmarks.timing import machine, pin_threads, table

    pin_threads()
    print(f"{machine()}; {SIDE}x{SIDE}, batches of {BATCH}.\n")
    networks = [arguments.network] if arguments.network else NETWORKS
    print(table(HEADER, [row for name in networks for row in rows(name, arguments.rounds)]), flush=True)


class Ticks:
    """Stands in for a progress bar, and keeps the times at which each batch of each pass was done."""

    bars: list[list[float]]

    def __init__(self, batches: Iterable[Any] = (), *_: Any, **__: Any) -> None:
        self.total = BATCHES
        self._batches, self._times = batches, [time.perf_counter()]
        Ticks.bars.append(self._times)

    def __enter__(self) -> Ticks:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, *_: object) -> None:
        self._times.append(time.perf_counter())

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield batch
            self.update()


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """The seconds per batch of all passes that `run` makes, and its seconds beside those."""
    Ticks.bars = []
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    passes = [
        times[first : first + BATCHES] for times in Ticks.bars for first in range(1, len(times), BATCHES)
    ]
    per_batch = sum((times[-1] - times[0]) / (BATCHES - 1) for times in passes)
    return per_batch, seconds - BATCHES * per_batch


def rows(name: str, rounds: int) -> list[list[str]]:
    """A row for `predict` and each of the others."""
    import keras
    import numpy as np

    import keras_bn

    class Batches(keras.callbacks.Callback):
        def on_predict_begin(self, logs: Any = None) -> None:
            self.ticks = Ticks()

        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
            keras.ops.convert_to_numpy(logs["outputs"])  # JAX does not wait for them
            self.ticks.update()

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(SIDE, SIDE, 3))
    images = np.random.default_rng(0).normal(size=(BATCHES * BATCH, SIDE, SIDE, 3)).astype("float32")
    options: dict[str, Any] = {"batch_size": BATCH, "progress": False}
    functions: dict[str, Callable[[], object]] = {
        "predict": lambda: model.predict(images, batch_size=BATCH, verbose=0, callbacks=[Batches()]),
        "sequential": lambda: keras_bn.recalibrate(model, images, **options),
        "batch": lambda: keras_bn.recalibrate(model, images, estimator="batch", **options),
        "inspect": lambda: keras_bn.inspect(model, images, **options),
    }
    modules = ("keras_bn.surgery.recalibrate", "keras_bn.inspection.examine")
    found: dict[str, list[tuple[float, float]]] = {function: [] for function in functions}
    with (
        mock.patch.object(sys.modules[modules[0]], "tqdm", Ticks),
        mock.patch.object(sys.modules[modules[1]], "tqdm", Ticks),
    ):
        for _ in range(1 + rounds):
            for function, run in functions.items():
                found[function].append(timed(run))
    result = []
    for function, (first, *others) in found.items():
        per_batch, once = (statistics.median(values) for values in zip(*others, strict=True))
        reference = statistics.median(seconds for seconds, _ in found["predict"][1:])
        result.append(
            [
                f"{name}, {function}",
                f"{1e3 * per_batch / BATCH:.2f} ms",
                f"{per_batch / reference:.2f}",
                f"{once:.1f}",
                f"{first[1]:.1f}",
            ]
        )
    return result


if __name__ == "__main__":
    main()
