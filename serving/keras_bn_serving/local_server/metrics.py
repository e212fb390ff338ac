"""Metrics under TF Serving's names, in the text form its Prometheus endpoint has, and the request log.

Not `prometheus_client`: that one adds `_total`, HELP lines and labels of its own; dashboards look for these.
"""

import bisect
import contextlib
import datetime
import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from keras_bn_serving.local_server import logs

# Of what clients choose, names of models that are not there: no request may fill the memory or the page.
_MOST_POINTS = 5000
_MOST_CHARACTERS = 500
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
# Characters that some readers take for the end of a line. The text form of metrics has no escape for them.
_ESCAPED |= dict.fromkeys(map(ord, "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), "\ufffd")
_LOCK = threading.Lock()
_FAMILIES: dict[str, "Counter"] = {}


class Counter:
    """A number that grows, for each combination of label values."""

    kind = "counter"

    def __init__(self, name: str, *labels: str) -> None:
        self._name = ":tensorflow:" + name
        self._labels = labels
        self._points: dict[tuple[str, ...], Any] = {}
        _FAMILIES[self._name] = self

    def add(self, *labels: str, by: int = 1) -> None:
        """Add `by` to the point with these label values."""
        with _LOCK:
            key = self._key(labels)
            self._points[key] = self._points.get(key, 0) + by

    def _key(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The labels of the point that counts for `labels`: themselves, within limits."""
        if labels in self._points:
            return labels
        if len(self._points) >= _MOST_POINTS:
            return ("other",) * len(labels)
        return tuple(value[:_MOST_CHARACTERS] for value in labels)

    def lines(self) -> Iterator[str]:
        """The metric in text form."""
        yield f"# TYPE {self._name} {self.kind}\n"
        for labels, point in self._points.items():
            pairs = [
                f'{name}="{value.translate(_ESCAPED)}"'
                for name, value in zip(self._labels, labels, strict=True)
            ]
            yield from self._samples(pairs, point)

    def _samples(self, pairs: list[str], point: Any) -> Iterator[str]:
        yield f"{self._name}{{{','.join(pairs)}}} {point}\n"


class Histogram(Counter):
    """Counts of values by bucket: bucket i holds the values from limit i-1 up to, not including, limit i."""

    kind = "histogram"

    def __init__(self, name: str, limits: Sequence[float], *labels: str) -> None:
        super().__init__(name, *labels)
        self._limits = list(limits)

    def observe(self, value: float, *labels: str) -> None:
        """Count `value` in the point with these label values."""
        with _LOCK:
            key = self._key(labels)
            counts, total = self._points.get(key) or ([0] * (len(self._limits) + 1), 0.0)
            counts[bisect.bisect_right(self._limits, value)] += 1
            self._points[key] = counts, total + value

    def _samples(self, pairs: list[str], point: tuple[list[int], float]) -> Iterator[str]:
        counts, total = point
        for index, limit in enumerate([*(f"{limit:g}" for limit in self._limits), "+Inf"], 1):
            bucket = ",".join([*pairs, f'le="{limit}"'])
            yield f"{self._name}_bucket{{{bucket}}} {sum(counts[:index])}\n"
        yield f"{self._name}_sum{{{','.join(pairs)}}} {total:g}\n"
        yield f"{self._name}_count{{{','.join(pairs)}}} {sum(counts)}\n"


def exposition() -> str:
    """All metrics in Prometheus text form, sorted by name."""
    with _LOCK:
        return "".join(line for _, family in sorted(_FAMILIES.items()) for line in family.lines())


_LATENCY = [10 * 1.8**power for power in range(33)]
_SIZES = [2**power for power in range(15)]

REQUESTS = Counter("serving:request_count", "model_name", "status")
REQUEST_LATENCY = Histogram("serving:request_latency", _LATENCY, "model_name", "API", "entrypoint")
RUNTIME_LATENCY = Histogram("serving:runtime_latency", _LATENCY, "model_name", "API", "runtime")
EXAMPLES = Counter("serving:request_example_count_total", "model")
EXAMPLE_COUNTS = Histogram("serving:request_example_counts", _SIZES, "model")
WARMUP_LATENCY = Histogram("serving:model_warmup_latency", _LATENCY, "model_path", "status")
WARMUP_RECORDS = Counter("serving:model_warmup_records_read", "model_path", "status")
_QUEUING = [100 * 1.2**power for power in range(52)]
QUEUING_LATENCY = Histogram("serving:batching_session:queuing_latency", _QUEUING, "thread_pool_name")
BATCHED_RUNS = Counter("serving:batching_session:wrapped_run_count")
INPUT_BATCH = Histogram("serving:batching_session:input_batch_size", _SIZES[:-1])
PADDING = Histogram("serving:batching_session:padding_size", _SIZES[:-1], "execution_batch_size")
PROCESSED_BATCH = Histogram("serving:batching_session:processed_batch_size", _SIZES[:-1])
LOADS = Counter("cc:saved_model:load_attempt_count", "model_path", "status")
LOAD_LATENCY = Counter("cc:saved_model:load_latency", "model_path")
Counter("serving:request_log_count")  # TF Serving lists these two always; here they never have a point
Counter("serving:mlmd_map").kind = "gauge"


@contextlib.contextmanager
def timed(histogram: Histogram, *labels: str) -> Iterator[None]:
    """Observe, in microseconds, how long the block took, unless it raises."""
    started = time.perf_counter()
    yield
    histogram.observe((time.perf_counter() - started) * 1e6, *labels)


def record(entrypoint: str, api: str, model: str, code: str, started: float, log: bool) -> None:
    """Count, time and, if `log`, log a request that came at `started` and has been answered."""
    seconds = time.perf_counter() - started
    if entrypoint == "REST" or api in ("Predict", "Classify", "Regress"):  # what TF Serving counts
        REQUESTS.add(model, code)
        if code == "OK":
            REQUEST_LATENCY.observe(seconds * 1e6, model, api, entrypoint)
    if log:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, "entrypoint": entrypoint, "api": api, "model": model, "status": code}
        logs.write(json.dumps(line | {"milliseconds": round(seconds * 1e3, 3)}))
