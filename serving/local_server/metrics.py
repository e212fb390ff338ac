"""Counters and histograms under TF Serving's names, in the text form its Prometheus endpoint has.

Not `prometheus_client`: that one adds `_total`, HELP lines and labels of its own, and dashboards made for TF
Serving look for `:tensorflow:serving:request_count` as it stands.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

_FAMILIES: dict[str, _Family] = {}


class _Family:
    """A metric with label names; its points, one for each tuple of label values."""

    kind = ""

    def __init__(self, name: str, *labels: str) -> None:
        self._name = ":tensorflow:" + name
        self._labels = labels
        self._lock = threading.Lock()
        _FAMILIES[self._name] = self

    def _pairs(self, values: Sequence[str], *more: str) -> str:
        escaped = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
        return ",".join(
            [*(f'{name}="{value}"' for name, value in zip(self._labels, escaped, strict=True)), *more]
        )

    def lines(self) -> list[str]:
        """The family in text form."""
        with self._lock:
            return [f"# TYPE {self._name} {self.kind}", *self._points()]

    def _points(self) -> list[str]:
        return []


class Absent(_Family):
    """A metric that TF Serving lists and that never has a point here."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name)
        self.kind = kind


class Counter(_Family):
    """A number that grows."""

    kind = "counter"

    def __init__(self, name: str, *labels: str) -> None:
        super().__init__(name, *labels)
        self._values: dict[tuple[str, ...], int] = {}

    def add(self, *labels: str, by: int = 1) -> None:
        """Add `by` to the point with these label values."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + by

    def _points(self) -> list[str]:
        return [f"{self._name}{{{self._pairs(labels)}}} {value}" for labels, value in self._values.items()]


class Histogram(_Family):
    """Counts of values by bucket: bucket i holds the values from limit i-1 up to, not including, limit i."""

    kind = "histogram"

    def __init__(self, name: str, limits: Sequence[float], *labels: str) -> None:
        super().__init__(name, *labels)
        self._limits = list(limits)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Count `value` in the point with these label values."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._limits) + 1))
            counts[bisect.bisect_right(self._limits, value)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def _points(self) -> list[str]:
        lines = []
        for labels, counts in self._counts.items():
            total = 0
            for limit, count in zip([*self._limits, None], counts, strict=True):
                total += count
                bound = "+Inf" if limit is None else f"{limit:g}"
                bucket = 'le="' + bound + '"'
                lines.append(f"{self._name}_bucket{{{self._pairs(labels, bucket)}}} {total}")
            lines.append(f"{self._name}_sum{{{self._pairs(labels)}}} {self._sums[labels]:g}")
            lines.append(f"{self._name}_count{{{self._pairs(labels)}}} {total}")
        return lines


def exposition() -> str:
    """All metrics in Prometheus text form, sorted by name."""
    return "".join(line + "\n" for name in sorted(_FAMILIES) for line in _FAMILIES[name].lines())


def _exponential(start: float, factor: float, count: int) -> list[float]:
    return [start * factor**power for power in range(count)]


_LATENCY = _exponential(10, 1.8, 33)
_EXAMPLES = _exponential(1, 2, 15)
_BATCH_SIZES = _exponential(1, 2, 14)

REQUESTS = Counter("serving:request_count", "model_name", "status")
REQUEST_LATENCY = Histogram("serving:request_latency", _LATENCY, "model_name", "API", "entrypoint")
RUNTIME_LATENCY = Histogram("serving:runtime_latency", _LATENCY, "model_name", "API", "runtime")
EXAMPLE_COUNTS = Histogram("serving:request_example_counts", _EXAMPLES, "model")
EXAMPLES = Counter("serving:request_example_count_total", "model")
WARMUP_LATENCY = Histogram("serving:model_warmup_latency", _LATENCY, "model_path", "status")
WARMUP_RECORDS = Counter("serving:model_warmup_records_read", "model_path", "status")
QUEUING_LATENCY = Histogram(
    "serving:batching_session:queuing_latency", _exponential(100, 1.2, 52), "thread_pool_name"
)
BATCHED_RUNS = Counter("serving:batching_session:wrapped_run_count")
PADDING = Histogram("serving:batching_session:padding_size", _BATCH_SIZES, "execution_batch_size")
INPUT_BATCH = Histogram("serving:batching_session:input_batch_size", _BATCH_SIZES)
PROCESSED_BATCH = Histogram("serving:batching_session:processed_batch_size", _BATCH_SIZES)
LOADS = Counter("cc:saved_model:load_attempt_count", "model_path", "status")
LOAD_LATENCY = Counter("cc:saved_model:load_latency", "model_path")
Absent("serving:request_log_count", "counter")
Absent("serving:mlmd_map", "gauge")


@contextlib.contextmanager
def timed(histogram: Histogram, *labels: str) -> Iterator[None]:
    """Observe, in microseconds, how long the block took, unless it raises."""
    started = time.perf_counter()
    yield
    histogram.observe((time.perf_counter() - started) * 1e6, *labels)
