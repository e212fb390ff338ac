"""Population statistics in shards: what a job costs, what it writes, and that the result is that of one pass.

`python -m benchmarks.shards` recalibrates MobileNetV2 at 96x96 with the batch estimator and prints

- the milliseconds per image of `Model.predict`, of one pass and of a shard, which take turns over the same
  images in one process; the time between two batches is taken, so that the fixed cost of a job (copying and
  tracing the model, the hash of its weights, the file) stands apart,
- the size of the file of a shard,
- the peak memory of a job with few and with many images, each in a process of its own,
- whether eight shards that two processes computed give the bits of one pass.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SIDE, BATCH, BATCHES, ROUNDS, SHARDS = 96, 32, 20, 5, 8
FEW, MANY = 128, 1280
MILLION = 1_000_000


def build() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    return keras.applications.MobileNetV2(weights=None, input_shape=(SIDE, SIDE, 3), classes=10)


def images(count: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).uniform(-1, 1, (count, SIDE, SIDE, 3)).astype("float32")


def recalibrate(model: Any, data: Any, **options: Any) -> Any:
    import keras_bn

    return keras_bn.recalibrate(model, data, estimator="batch", progress=False, **options)


def timed(run: Callable[[Iterator[Any]], object], data: Any) -> tuple[list[float], float]:
    """The seconds between batches, without the first two, and those of the whole run."""
    moments = []

    def batches() -> Iterator[Any]:
        for start in range(0, len(data), BATCH):
            moments.append(time.perf_counter())
            yield data[start : start + BATCH]

    start = time.perf_counter()
    run(batches())
    total = time.perf_counter() - start
    return [later - earlier for earlier, later in pairwise(moments[2:])], total


def costs(jobs: dict[str, Callable[[Iterator[Any]], object]]) -> dict[str, tuple[float, float]]:
    """Of each job the median seconds per image, and the seconds that do not depend on their number."""
    data, shuffled = images(BATCHES * BATCH), random.Random(0)
    between: dict[str, list[float]] = {name: [] for name in jobs}
    totals: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(ROUNDS):
        for name in shuffled.sample(list(jobs), len(jobs)):
            gaps, total = timed(jobs[name], data)
            between[name] += gaps
            totals[name].append(total)
    result = {}
    for name in jobs:
        image = statistics.median(between[name]) / BATCH
        result[name] = image, statistics.median(totals[name]) - len(data) * image
    return result


def shard(index: int, folder: str) -> str:
    """Compute one of the shards; returns its file."""
    file = f"{folder}/{index}.stats"
    recalibrate(build(), images(2 * SHARDS * BATCH), batch_size=BATCH, shard=(index, SHARDS), save=file)
    return file


def peak(count: int) -> int:
    """The peak resident memory in MB of a job with so many images, in this process."""
    recalibrate(build(), images(BATCH), shard=(0, 1))
    recalibrate(build(), (images(BATCH) for _ in range(count // BATCH)), shard=(0, 1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    from benchmarks.timing import machine, pin_threads, table

    pin_threads()
    import numpy as np

    import keras_bn

    print(machine())
    model = build()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.stats"
        found = costs(
            {
                "predict": lambda data: model.predict(((batch,) for batch in data), verbose=0),
                "one pass": lambda data: recalibrate(model, data),
                "a shard": lambda data: recalibrate(model, data, shard=(0, 1), save=file),
            }
        )
        once = found["one pass"]
        rows = [
            [
                name,
                f"{1e3 * image:.2f}",
                f"{image / once[0]:.2f}",
                f"{fixed:.1f}",
                f"{(MILLION * image + fixed) / 3600:.2f}",
            ]
            for name, (image, fixed) in found.items()
        ]
        print()
        print(
            table(["job", "ms per image", "to one pass", "fixed seconds", "hours for a million images"], rows)
        )
        channels = sum(layer.gamma.shape[0] for layer in model.layers if hasattr(layer, "gamma"))
        print(f"\nThe file of a shard takes {file.stat().st_size / 1e3:.0f} kB for {channels} channels.")
        few, many = (
            int(subprocess.run([*_python(), str(n)], capture_output=True, text=True, check=True).stdout)
            for n in (FEW, MANY)
        )
        print(f"Peak memory of a job: {few} MB with {FEW} images, {many} MB with {MANY}.")
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            files = list(pool.map(shard, range(SHARDS), [folder] * SHARDS))
        whole = recalibrate(model, images(2 * SHARDS * BATCH), batch_size=BATCH).model
        orders = [files, files[::-1], random.Random(0).sample(files, SHARDS)]
        same = all(
            np.array_equal(one, other)
            for order in orders
            for one, other in zip(
                keras_bn.merge(order).apply(model).model.get_weights(), whole.get_weights(), strict=True
            )
        )
        verdict = "equal" if same else "NOT equal"
        print(
            f"{SHARDS} shards from two processes, merged in three orders: {verdict} to one pass, bit for bit."
        )


def _python() -> list[str]:
    return [sys.executable, "-m", "benchmarks.shards", "--peak"]


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add_argument("--peak", type=int, metavar="IMAGES", help="only the peak memory of one job")
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak))
    else:
        main()
