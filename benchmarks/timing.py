"""Fair timing: candidates take turns, so that other load on the machine affects all of them equally."""

import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

THREADS = 2

Candidates = Mapping[str, Callable[[], object]]
Factories = Mapping[str, Callable[[], Callable[[], object]]]


def pin_threads() -> None:
    """Give TensorFlow and, if it is installed, torch the same number of threads; call before using either."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(THREADS)


def interleaved(
    candidates: Candidates, rounds: int = 15, warmup: int = 3, least_seconds: float = 0.0, calls: int = 1
) -> dict[str, float]:
    """Median seconds of each candidate over rounds that run every candidate once, in random order.

    The order matters: torch's threads go on spinning for a while, and whatever ran next would always pay.

    Args:
        candidates: what to run.
        rounds: how many rounds, at least.
        warmup: how often each candidate runs before that.
        least_seconds: so many seconds of rounds, at least, since short runs scatter more.
        calls: how often a candidate runs in its turn. If more than once, as a server that is asked again and
            again does, the first quarter is not counted, in which its data come back into the caches and the
            threads of the others come to rest.
    """
    shuffled = random.Random(0)
    for run in candidates.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    gc.disable()
    try:
        done, begin = 0, time.perf_counter()
        while done < rounds or time.perf_counter() - begin < least_seconds:
            for name in shuffled.sample(list(candidates), len(candidates)):
                for call in range(calls):
                    start = time.perf_counter()
                    candidates[name]()
                    if call >= calls // 4:
                        seconds[name].append(time.perf_counter() - start)
            done += 1
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in seconds.items()}


def rebuilt(factories: Factories, builds: int, least_seconds: float) -> dict[str, float]:
    """As `interleaved`, the mean over several builds of the candidates, each in an order of its own.

    Where its tensors lie in memory makes a step up to 6% faster or slower for as long as it lives, and the
    candidate that is built first tends to lie worst: the same layer, built twice, differs by as much.

    Args:
        factories: of each candidate what builds it.
        builds: how many times.
        least_seconds: of rounds, in each build.
    """
    shuffled = random.Random(0)
    medians: dict[str, list[float]] = {name: [] for name in factories}
    for _ in range(builds):
        candidates = {name: factories[name]() for name in shuffled.sample(list(factories), len(factories))}
        for name, seconds in interleaved(candidates, least_seconds=least_seconds).items():
            medians[name].append(seconds)
        candidates.clear()  # or two builds would be in memory
    return {name: statistics.mean(values) for name, values in medians.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def ratio_row(name: str, seconds: Mapping[str, float], columns: Sequence[str], base: str) -> list[str]:
    """Milliseconds of the base, then how many times as long each of the other columns took."""
    cells = [f"{seconds[c] / seconds[base]:.2f}" if c in seconds else "" for c in columns if c != base]
    return [name, f"{1e3 * seconds[base]:.2f}", *cells]


def machine() -> str:
    """One line: processor, cores, versions."""
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    versions = []
    for package in ("tensorflow", "jax", "keras", "tf_keras", "torch", "numpy"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return (
        f"{model}, {os.cpu_count()} cores, {THREADS} threads; Python {platform.python_version()}, "
        + ", ".join(versions)
    )
