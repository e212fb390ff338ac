"""The local server under load for an hour: answers, latency, memory, descriptors, while versions are swapped.

    python -m benchmarks.soak [--minutes 60] [--engine tensorflow]

Loopback only. Clients ask over REST and gRPC without a pause; every ten seconds a new version takes the place
of the last, and requests that must be refused are mixed in. A line a minute; the exit code is 1 if a request
failed or was answered wrong, or if memory or descriptors grew.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from benchmarks.servers import Rest, export_models, over_grpc, resident_mib, states
from benchmarks.timing import machine
from keras_bn_serving.local_server import LocalServer, launch

BODY = b'{"instances": [1.0]}'
SWAP_SECONDS = 10
GROWTH = 1.15  # of memory, over that after the third swap
ODD = [
    "/v1/models/%FF",
    "/v1/models/%0A:predict",
    "/nowhere",
    "/v1/models/m:predict?x",
    "/v1/models/" + "x" * 9000,
]


class Counts:
    """The events of the clients since `take` was last called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: list[float] = []
        self.failed = self.wrong = 0

    def add(self, seconds: float, failed: bool = False, wrong: bool = False) -> None:
        """Count a request."""
        with self._lock:
            self._seconds.append(seconds)
            self.failed += failed
            self.wrong += wrong

    def take(self) -> tuple[int, float, float]:
        """The number of requests, p50 and p99 in milliseconds."""
        with self._lock:
            seconds, self._seconds = self._seconds, []
        p50, p99 = 1e3 * np.percentile(seconds, (50, 99)) if seconds else (np.nan, np.nan)
        return len(seconds), float(p50), float(p99)


def ask(server: LocalServer, over_rest: bool, counts: Counts, stop: threading.Event) -> None:
    """Ask until told to stop, on one connection while it holds."""
    run = expected = None
    while not stop.is_set():
        started = time.perf_counter()
        try:
            if run is None:
                run = (
                    Rest(server.rest_port, "large", BODY)
                    if over_rest
                    else over_grpc(server.port, "large", np.float32([1.0]))
                )
            answer = run()
        except Exception as error:
            print(f"failed: {error!r}", file=sys.stderr)
            counts.add(time.perf_counter() - started, failed=True)
            run = None
            time.sleep(0.1)
            continue
        expected = expected or answer.rsplit(b"large", 1)[0]  # a gRPC response ends with the version's number
        counts.add(time.perf_counter() - started, wrong=not answer.startswith(expected))


def swap_for_ever(
    source: Path, base: Path, server: LocalServer, swapped: list[int], stop: threading.Event
) -> None:
    """Put a version in the place of the last, again and again, and ask what must be refused."""
    version = 1
    while not stop.wait(SWAP_SECONDS):
        version += 1
        shutil.copytree(source, base.parent / "aside")
        (base.parent / "aside").rename(base / str(version))
        while not stop.is_set() and states(server.rest_port, "large").get(version - 1) != "END":
            time.sleep(0.1)
        shutil.rmtree(base / str(version - 1))
        swapped.append(version)
        for path in ODD:
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(f"http://localhost:{server.rest_port}{path}", BODY, timeout=20)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def soak(minutes: float, engine: str) -> int:
    counts, stop, swapped = Counts(), threading.Event(), []  # type: ignore[var-annotated]
    baseline, memory, total = 0.0, 0.0, 0
    print("| minute | requests | failed | wrong | p50 ms | p99 ms | swaps | MiB | descriptors |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder, base = Path(name), Path(name) / "live"
        export_models(folder)
        base.mkdir()
        shutil.copytree(folder / "large" / "1", base / "1")
        with launch(base, "large", timeout=120, engine=engine) as server:
            threads = [
                threading.Thread(target=ask, args=(server, number % 2 == 0, counts, stop))
                for number in range(4)
            ]
            swaps = (folder / "large" / "1", base, server, swapped, stop)
            threads.append(threading.Thread(target=swap_for_ever, args=swaps))
            for thread in threads:
                thread.start()
            try:
                end, minute, first = time.monotonic() + 60 * minutes, 0, 0
                while time.monotonic() < end and server.process.poll() is None:
                    time.sleep(min(60, max(end - time.monotonic(), 0)))
                    minute += 1
                    number, p50, p99 = counts.take()
                    total += number
                    memory, files = resident_mib(server.process.pid), descriptors(server.process.pid)
                    if not baseline and len(swapped) >= 3:
                        baseline, first = memory, files
                    cells = [f"{number}", f"{counts.failed}", f"{counts.wrong}", f"{p50:.2f}", f"{p99:.2f}"]
                    cells += [f"{len(swapped)}", f"{memory:.0f}", f"{files}"]
                    print(f"| {minute} | {' | '.join(cells)} |", flush=True)
                alive = server.process.poll() is None
                grown = bool(baseline) and (memory > GROWTH * baseline or files > first + 10)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
    good = alive and total and not (counts.failed or counts.wrong or grown)
    print(
        f"\n{total} requests: {'all right' if good else 'not all right'}{'; memory grew' if grown else ''}."
    )
    return 0 if good else 1


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=60, help="how long, at most 24 hours")
    arguments.add_argument("--engine", default="tensorflow", help="what computes")
    options = arguments.parse_args()
    print(machine() + "\n")
    return soak(min(options.minutes, 24 * 60), options.engine)


if __name__ == "__main__":
    sys.exit(main())
