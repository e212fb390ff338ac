"""Recalibration and inspection beside `Model.predict` on the same backend.

    python -m benchmarks.recalibrate                     every backend, each in a process of its own
    python -m benchmarks.recalibrate --backend torch     one of them

Two figures are told apart. The time per image is that of a pass that is under way: the time of many images
less that of few, divided by the difference in images. The time once is what a call takes beside that, on
however few images: copying the model, tracing or compiling it. The first call in a process is timed too.
`inspect` runs the network twice for each image, and its figure is that of both runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BACKENDS = ("tensorflow", "jax", "torch")
SIDE, BATCH = 96, 32
FEW = 10  # batches; TensorFlow compiles nothing for eight or fewer
NETWORKS = ("MobileNetV2", "ResNet50")
PREDICTING = 3.0  # seconds more that `predict` takes for many images than for few, lest once hide the rest
HEADER = ["", "per image", "per image / predict", "once, s", f"first call, {FEW * BATCH} images, s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--network", choices=NETWORKS, help="one of them instead of both")
    parser.add_argument("--rounds", type=int, default=3)
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


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rows(name: str, rounds: int) -> list[list[str]]:
    """A row for `predict` and each of the others."""
    import keras
    import numpy as np

    import keras_bn
    from benchmarks.timing import interleaved

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(SIDE, SIDE, 3))
    options: dict[str, Any] = {"batch_size": BATCH, "progress": False}
    functions: dict[str, Callable[[np.ndarray], object]] = {
        "predict": lambda x: model.predict(x, batch_size=BATCH, verbose=0),
        "sequential": lambda x: keras_bn.recalibrate(model, x, **options),
        "batch": lambda x: keras_bn.recalibrate(model, x, estimator="batch", **options),
        "inspect": lambda x: keras_bn.inspect(model, x, **options),
    }
    images = np.random.default_rng(0).normal(size=(FEW * BATCH, SIDE, SIDE, 3)).astype("float32")
    first = {name: _seconds(lambda f=function: f(images)) for name, function in functions.items()}
    warm = _seconds(lambda: functions["predict"](images))
    many = FEW + round(min(max(PREDICTING / warm, 1), 8) * FEW)
    images = np.tile(images, (1 + many // FEW, 1, 1, 1))
    runs = {
        f"{name} {count}": lambda function=function, count=count: function(images[: count * BATCH])
        for name, function in functions.items()
        for count in (FEW, many)
    }
    seconds = interleaved(runs, rounds=rounds, warmup=0)
    result = []
    slopes: dict[str, float] = {}
    for function in functions:
        few, long = seconds[f"{function} {FEW}"], seconds[f"{function} {many}"]
        slopes[function] = (long - few) / (many - FEW)
        result.append(
            [
                f"{name}, {function}",
                f"{1e3 * slopes[function] / BATCH:.2f} ms",
                f"{slopes[function] / slopes['predict']:.2f}",
                f"{few - FEW * slopes[function]:.1f}",
                f"{first[function]:.1f}",
            ]
        )
    return result


if __name__ == "__main__":
    main()
