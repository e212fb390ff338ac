"""The queue of batches: which requests are computed together, and when, as TensorFlow Serving decides it."""

import dataclasses
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from google.protobuf.message import Message

from keras_bn_serving.wire.errors import InvalidArgumentError, ServingError, UnavailableError


@dataclasses.dataclass(frozen=True)
class Parameters:
    """TF Serving's BatchingParameters, with its defaults."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: Sequence[int] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    def __post_init__(self) -> None:
        positive = ("num_batch_threads", "max_batch_size")
        for name in (*positive, "batch_timeout_micros", "max_enqueued_batches"):
            number = getattr(self, name)
            if number < (name in positive):
                what = f"{name} must be {'positive' if name in positive else 'non-negative'}; was {number}"
                raise InvalidArgumentError(what)
        sizes, largest = self.allowed_batch_sizes, self.largest_execution()
        if sizes and sizes[-1] != largest:
            what = "Last entry in allowed_batch_sizes must match max_batch_size"
            raise InvalidArgumentError(f"{what}; last entry was {sizes[-1]}; expected {largest}")

    @classmethod
    def of(cls, proto: Message) -> "Parameters":
        """The parameters a BatchingParameters message holds; INVALID_ARGUMENT if they make no sense."""
        given = {field.name: getattr(value, "value", value) for field, value in proto.ListFields()}
        given.pop("thread_pool_name", None)
        return cls(**given)

    def largest_execution(self) -> int:
        """The most rows that are run at once."""
        return (self.enable_large_batch_splitting and self.max_execution_batch_size) or self.max_batch_size

    def execution_size(self, rows: int) -> int:
        """The number of rows that `rows` rows are filled up to."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


class Task:
    """A request: its tensors, and its result or error once all of its rows have been run."""

    def __init__(self, feeds: Mapping[str, np.ndarray], rows: int, timeout_ms: int) -> None:
        self.feeds = feeds
        self.rows = rows
        self.timeout_ms = timeout_ms
        self.queued = time.perf_counter()
        self.parts: dict[int, list[np.ndarray]] = {}  # of the outputs, by first row
        self.error: ServingError | None = None
        self.rows_left = rows
        self.done = threading.Event()

    def result(self) -> list[np.ndarray]:
        """Wait for the outputs, or raise the error."""
        self.done.wait()
        if self.error is not None:
            raise self.error
        parts = [self.parts[start] for start in sorted(self.parts)]
        return [np.concatenate(output) for output in zip(*parts, strict=True)] if parts[1:] else parts[0]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive rows of a task."""

    task: Task
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Their number."""
        return self.stop - self.start


class _Batch:
    def __init__(self) -> None:
        self.opened = time.perf_counter()
        self.pieces: list[Piece] = []
        self.rows = 0


class BatchQueue:
    """The batches that wait to be run, the oldest first. New rows go into the last while it has room."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._largest = parameters.largest_execution()
        self._batches: deque[_Batch] = deque()

    def __len__(self) -> int:
        return len(self._batches)

    def put(self, task: Task) -> None:
        """Add a request; UNAVAILABLE if that takes more batches than may wait."""
        self._check_capacity(task)
        start = 0
        while start < task.rows:
            if not self._batches or not self._fits(task):
                self._batches.append(_Batch())
            batch = self._batches[-1]
            stop = min(start + self._largest - batch.rows, task.rows)
            batch.pieces.append(Piece(task, start, stop))
            batch.rows += stop - start
            start = stop

    def due(self) -> float:
        """The time, on the clock of `time.perf_counter`, at which the oldest batch is to be run."""
        oldest = self._batches[0]
        if len(self._batches) > 1 or oldest.rows >= self._largest:
            return oldest.opened
        return oldest.opened + self._parameters.batch_timeout_micros / 1e6

    def take(self) -> list[Piece]:
        """Remove the oldest batch."""
        return self._batches.popleft().pieces

    def _fits(self, task: Task) -> bool:
        """Whether the last batch has room for the task or, where tasks may be split, for a row of it."""
        rows = 1 if self._parameters.enable_large_batch_splitting else task.rows
        return self._batches[-1].rows + rows <= self._largest

    def _check_capacity(self, task: Task) -> None:
        refusal = "The batch scheduling queue to which this task was submitted is full"
        open_rows = self._batches[-1].rows if self._batches else 0
        limit, waiting = self._parameters.max_enqueued_batches, max(len(self._batches), 1)
        if self._parameters.enable_large_batch_splitting:
            capacity = (limit - waiting + 1) * self._largest - open_rows
            if task.rows > capacity:
                raise UnavailableError(
                    f"{refusal}; task size is {task.rows} but scheduling capacity is only {capacity} "
                    f"(num_enqueued_batches={waiting}, max_enqueued_batches={limit}, "
                    f"open_batch_size={open_rows}, max_execution_batch_size={self._largest})"
                )
        elif self._batches and not self._fits(task) and waiting >= limit:
            what = f"currently {waiting} batches enqueued and max_enqueued_batches is {limit}"
            raise UnavailableError(f"{refusal}; {what}")
