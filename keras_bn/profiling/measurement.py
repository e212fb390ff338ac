"""Clients that ask without pause, and what they see."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Setting:
    """How a model is run.

    Attributes:
        precision: float32 or bfloat16, as the version was exported.
        threads: threads that compute one request together (intra-op).
        batch_size: the most requests that are merged into one run; 1 for none.
        clients: clients that ask at the same time, each its next request when it has the answer.
    """

    precision: str
    threads: int
    batch_size: int
    clients: int


@dataclass(frozen=True)
class Measurement:
    """What the clients saw at a setting.

    Attributes:
        setting: the setting.
        median: the median latency, in seconds.
        p99: the latency that 99 of 100 requests stay below, in seconds.
        throughput: answered requests per second, of all clients together.
        memory: the resident memory of the process that served, in bytes.
    """

    setting: Setting
    median: float
    p99: float
    throughput: float
    memory: int


def ask(
    run: Callable[[], object], clients: int, seconds: float, requests: int = 1
) -> tuple[list[float], float]:
    """Let so many threads call `run` without pause.

    Args:
        run: answers `requests` requests at once.
        clients: the number of threads.
        seconds: for how long; every client calls at least three times.
        requests: how many requests a call stands for.

    Returns:
        The seconds of every call, and the requests answered per second.
    """
    latencies: list[list[float]] = [[] for _ in range(clients)]
    errors: list[BaseException] = []
    run()
    begin = time.perf_counter()

    def client(own: list[float]) -> None:
        try:
            while len(own) < 3 or time.perf_counter() - begin < seconds:
                start = time.perf_counter()
                run()
                own.append(time.perf_counter() - start)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(own,)) for own in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    if errors:
        raise errors[0]
    flat = [latency for own in latencies for latency in own]
    return flat, requests * len(flat) / took


def measured(setting: Setting, latencies: list[float], throughput: float, memory: int) -> Measurement:
    """Summarize what `ask` returned."""
    median, p99 = np.percentile(latencies, [50, 99])
    return Measurement(setting, float(median), float(p99), throughput, memory)
