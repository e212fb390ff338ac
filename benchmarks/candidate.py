"""A runtime with a model in a process of its own, which times itself when it is asked.

In one process, TensorFlow's sessions would share the threads of the first of them, whatever their settings
say, and all candidates the allocator and the memory that earlier ones left behind.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks import runtimes

MB = 1e6


class Failed(Exception):
    """A candidate that could not be opened; the message says why in a few words."""


class Candidate:
    """`file` in `runtime` (a name of `runtimes`), with `threads` threads, in a process of its own.

    Attributes:
        load: Seconds from opening the file to the first answer.
        resident: Resident memory of the process then, Python included, in MB.
        answer: The first answer, the outputs for the image.

    Raises:
        Failed: If the runtime cannot run it.
    """

    def __init__(self, runtime: str, file: Path, threads: int, image: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.candidate", runtime, str(file), str(threads), str(image)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        first = self._read()
        if "failed" in first:
            self.close()
            raise Failed(first["failed"])
        # Not at the top of this module, which the process runs as well, and without Keras.
        from keras_bn.profiling.in_process import resident

        self.load, self.resident = first["load"], resident(self._process.pid) / MB
        self.answer = np.array(first["answer"], np.float32)

    def turn(self, calls: int) -> list[float]:
        """Seconds of each of `calls` calls."""
        assert self._process.stdin is not None
        print(calls, file=self._process.stdin, flush=True)
        return self._read()["seconds"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"failed": f"exit code {self._process.wait()}"}


def by_turns(candidates: Mapping[str, Candidate], rounds: int, calls: int) -> dict[str, float]:
    """Median seconds of each candidate over rounds that give each a turn, in random order.

    The first quarter of a turn is not counted, in which its data come back into the caches.

    Args:
        candidates: what to run.
        rounds: how many rounds.
        calls: how often a candidate runs in its turn.
    """
    shuffled = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name in shuffled.sample(list(candidates), len(candidates)):
            seconds[name] += candidates[name].turn(calls)[calls // 4 :]
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(runtime: str, file: Path, threads: int, image: np.ndarray) -> None:
    """Open a file, run it once, then as often as each line of standard input says."""
    # What the runtimes print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def write(**answer: object) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        runtimes.import_runtime(runtime)
        start = time.perf_counter()
        run = runtimes.open_runtime(runtime, file, threads, image)
        outputs = run()
    except Exception as error:
        write(failed=f"missing: {error.name}" if isinstance(error, ImportError) else type(error).__name__)
        return
    write(load=time.perf_counter() - start, answer=np.asarray(outputs).tolist())
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        write(seconds=seconds)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), np.load(sys.argv[4]))
