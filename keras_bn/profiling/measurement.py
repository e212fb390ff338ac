"""Clients that send requests without pause, and the measured latencies."""

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
        threads: Number of threads that compute one request together (intra-op).
        batch_size: Largest number of requests that are merged into one run. With 1, none are merged.
        clients: Number of concurrent clients. Each sends its next request when it has the answer.
    """

    precision: str
    threads: int
    batch_size: int
    clients: int


@dataclass(frozen=True)
class Measurement:
    """The measurement of a setting.

    Attributes:
        setting: The setting.
        median: Median latency in seconds.
        p99: Latency that 99 of 100 requests stay below, in seconds.
        throughput: Answered requests per second, of all clients together.
        memory: Resident memory of the serving process, in bytes.
    """

    setting: Setting
    median: float
    p99: float
    throughput: float
    memory: int


def ask(
    run: Callable[[], object], clients: int, seconds: float, requests: int = 1
) -> tuple[list[float], float]:
    """Let several threads call `run` without pause.

    Args:
        run: Function that answers `requests` requests at once.
        clients: Number of threads.
        seconds: Duration in seconds. Every client calls at least three times.
        requests: Number of requests per call.

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
