"""Recalibration and inspection beside `Model.predict` on the same backend, in time per image.

    python -m benchmarks.recalibrate                     every backend, each in a process of its own
    python -m benchmarks.recalibrate --backend torch     one of them

The time per image is the time of many images less that of few, divided by the difference in images, so what
happens once (copying the model, compiling it) is in columns of its own. `inspect` runs the network twice.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

BACKENDS = ("tensorflow", "jax", "torch")
NETWORKS = ("MobileNetV2", "ResNet50")
SIDE, BATCH = 96, 32
FEW, MANY = 10 * BATCH, 24 * BATCH  # TensorFlow compiles nothing for eight batches or fewer
HEADER = ["", "predict, ms per image", "sequential / predict", "batch / predict", "inspect / predict"]
ONCE = ["sequential, once, s", "batch, once, s", "inspect, once, s"]


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
    print(table([*HEADER, *ONCE], [row(name, arguments.rounds) for name in networks]), flush=True)


def row(name: str, rounds: int) -> list[str]:
    """The time per image of `predict`, those of the others as ratios to it, and the seconds spent once."""
    import keras
    import numpy as np

    import keras_bn
    from benchmarks.timing import interleaved

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(SIDE, SIDE, 3))
    images = np.random.default_rng(0).normal(size=(MANY, SIDE, SIDE, 3)).astype("float32")
    options: dict[str, Any] = {"batch_size": BATCH, "progress": False}
    functions: dict[str, Callable[[np.ndarray], object]] = {
        "predict": lambda x: model.predict(x, batch_size=BATCH, verbose=0),
        "sequential": lambda x: keras_bn.recalibrate(model, x, **options),
        "batch": lambda x: keras_bn.recalibrate(model, x, estimator="batch", **options),
        "inspect": lambda x: keras_bn.inspect(model, x, **options),
    }
    runs = {
        f"{name} {count}": lambda function=function, count=count: function(images[:count])
        for name, function in functions.items()
        for count in (FEW, MANY)
    }
    seconds = interleaved(runs, rounds=rounds, warmup=1)
    slopes = {n: (seconds[f"{n} {MANY}"] - seconds[f"{n} {FEW}"]) / (MANY - FEW) for n in functions}
    once = {n: seconds[f"{n} {FEW}"] - FEW * slopes[n] for n in functions}
    others = [n for n in functions if n != "predict"]
    return [
        name,
        f"{1e3 * slopes['predict']:.2f}",
        *(f"{slopes[n] / slopes['predict']:.2f}" for n in others),
        *(f"{once[n]:.1f}" for n in others),
    ]


if __name__ == "__main__":
    main()
