"""Population statistics in shards: what a job costs, what it writes, and that the result is that of one pass.

`python -m benchmarks.shards` recalibrates MobileNetV2 at 96x96 with the batch estimator and prints

- the seconds per image of one pass and of shards, from data of two sizes, so that the fixed cost of a job
  (copying and tracing the model) stands apart,
- the size of the file of a shard,
- the peak memory of a job with few and with many images, each in a process of its own,
- whether eight shards that two processes computed give the bits of one pass.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SIDE, BATCH, SMALL, LARGE, ROUNDS, SHARDS = 96, 32, 128, 640, 3, 8


def build() -> Any:
    import keras

    keras.utils.set_random_seed(0)
    return keras.applications.MobileNetV2(weights=None, input_shape=(SIDE, SIDE, 3), classes=10)


def images(count: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).uniform(-1, 1, (count, SIDE, SIDE, 3)).astype("float32")


def recalibrate(model: Any, count: int, **options: Any) -> float:
    """The seconds that it takes."""
    import keras_bn

    data, start = images(count), time.perf_counter()
    keras_bn.recalibrate(model, data, estimator="batch", batch_size=BATCH, progress=False, **options)
    return time.perf_counter() - start


def shard(index: int, folder: str) -> str:
    """Compute one of the shards; returns its file."""
    file = f"{folder}/{index}.stats"
    recalibrate(build(), 2 * SHARDS * BATCH, shard=(index, SHARDS), save=file)
    return file


def peak(count: int) -> int:
    """The peak resident memory in MB of a job with so many images, in this process."""
    recalibrate(build(), BATCH)
    import keras_bn

    batches = (images(BATCH) for _ in range(count // BATCH))
    keras_bn.recalibrate(build(), batches, estimator="batch", shard=(0, 1), progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    from benchmarks.timing import machine, pin_threads

    pin_threads()
    import numpy as np

    import keras_bn

    print(machine())
    model = build()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.stats"
        kinds: dict[str, dict[str, Any]] = {"one pass": {}, "a shard": {"shard": (0, 1), "save": file}}
        seconds: dict[tuple[str, int], list[float]] = {}
        for _ in range(ROUNDS):
            for name, options in kinds.items():
                for count in (SMALL, LARGE):
                    seconds.setdefault((name, count), []).append(recalibrate(model, count, **options))
        medians = {key: statistics.median(values) for key, values in seconds.items()}
        slope = {name: (medians[name, LARGE] - medians[name, SMALL]) / (LARGE - SMALL) for name in kinds}
        fixed = {name: medians[name, SMALL] - SMALL * slope[name] for name in kinds}
        print("\n| job | ms per image | fixed seconds |\n| --- | --- | --- |")
        for name in kinds:
            print(f"| {name} | {1e3 * slope[name]:.2f} | {fixed[name]:.1f} |")
        print(f"\nOverhead of a shard per image: {slope['a shard'] / slope['one pass'] - 1:+.0%}.")
        channels = sum(layer.gamma.shape[0] for layer in model.layers if hasattr(layer, "gamma"))
        print(f"The file of a shard takes {file.stat().st_size / 1e3:.0f} kB for {channels} channels.")
        few, many = (
            int(subprocess.run([*_python(), str(n)], capture_output=True, text=True, check=True).stdout)
            for n in (SMALL, LARGE)
        )
        print(f"Peak memory of a job: {few} MB with {SMALL} images, {many} MB with {LARGE}.")
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            files = list(pool.map(shard, range(SHARDS), [folder] * SHARDS))
        merged = keras_bn.merge(files[::-1]).apply(model).model
        whole = keras_bn.recalibrate(
            model, images(2 * SHARDS * BATCH), estimator="batch", batch_size=BATCH, progress=False
        ).model
        pairs = zip(merged.get_weights(), whole.get_weights(), strict=True)
        same = all(np.array_equal(one, other) for one, other in pairs)
        verdict = "equal" if same else "NOT equal"
        print(f"{SHARDS} shards from two processes, merged in reverse: {verdict} to one pass, bit for bit.")


def _python() -> list[str]:
    return [sys.executable, "-m", "benchmarks.shards", "--peak"]


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if sys.argv[1:2] == ["--peak"]:
        print(peak(int(sys.argv[2])))
    else:
        main()
