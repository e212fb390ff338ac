"""Batching: concurrent requests joined on TensorFlow's own batching kernel (the one inside TF Serving).

The kernel (`BatchFunction`) decides which requests make a batch: it has the queue, the threads, the time
limits, the allowed sizes and the splitting of large requests. What goes through it are row numbers only,
[task, row] pairs; the body of a batch fetches those rows from the tasks, runs the model, and hands every task
its rows of the result. So the tensors of a batch may be padded to one shape, and an error reaches every task
of its batch in the words clients know.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from serving.local_server import metrics
from serving.local_server.executor import GraphSession
from serving.local_server.flags import CPUS
from serving.local_server.status import StatusError, from_exception, invalid_argument

_MAX_PADDED_RANK = 6


@dataclasses.dataclass(frozen=True)
class Parameters:
    """TF Serving's BatchingParameters, with its defaults."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = CPUS
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    @classmethod
    def of(cls, proto: Any) -> Parameters:
        """The parameters a BatchingParameters message holds.

        Raises:
            StatusError: INVALID_ARGUMENT for values that make no sense.
        """
        given: dict[str, Any] = {
            field.name: value.value if hasattr(value, "value") else value
            for field, value in proto.ListFields()
        }
        given.pop("thread_pool_name", None)
        given["allowed_batch_sizes"] = tuple(given.get("allowed_batch_sizes", ()))
        parameters = cls(**given)
        parameters._check()
        return parameters

    def _check(self) -> None:
        for name in ("num_batch_threads", "max_batch_size"):
            if getattr(self, name) <= 0:
                raise invalid_argument(f"{name} must be positive; was {getattr(self, name)}")
        for name in ("batch_timeout_micros", "max_enqueued_batches"):
            if getattr(self, name) < 0:
                raise invalid_argument(f"{name} must be non-negative; was {getattr(self, name)}")

    def check_sizes(self) -> None:
        """Raise INVALID_ARGUMENT unless the allowed sizes end with the largest batch."""
        sizes, largest = self.allowed_batch_sizes, self.largest_execution
        if sizes and sizes[-1] != largest:
            raise invalid_argument(
                "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
                f"{sizes[-1]}; expected {largest}"
            )

    @property
    def largest_execution(self) -> int:
        """The most rows that are run at once."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size:
            return self.max_execution_batch_size
        return self.max_batch_size

    def execution_sizes(self) -> list[int]:
        """The allowed sizes as the kernel takes them: where large requests are split, their last one is the
        limit."""
        if self.enable_large_batch_splitting and not self.allowed_batch_sizes:
            return list(range(1, self.largest_execution + 1))
        return list(self.allowed_batch_sizes)


class _Task:
    """One request in the queue: its tensors, and the parts of its result by first row."""

    def __init__(self, feeds: Mapping[str, np.ndarray], timeout_ms: int) -> None:
        self.feeds = feeds
        self.timeout_ms = timeout_ms
        self.parts: dict[int, list[np.ndarray]] = {}
        self.error: StatusError | None = None
        self.queued = time.perf_counter()

    def result(self) -> list[np.ndarray]:
        if self.error is not None:
            raise self.error
        parts = [self.parts[start] for start in sorted(self.parts)]
        return (
            parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]
        )


class Batcher:
    """Runs a model in batches. Thread-safe.

    Args:
        run: runs the model on a batch: `run(feeds, fetches)`.
        parameters: sizes, times and threads.
    """

    def __init__(self, run: Callable[..., list[np.ndarray]], parameters: Parameters) -> None:
        parameters.check_sizes()
        self._run = run
        self._parameters = parameters
        # Threads of its own: the bodies of batches wait for the model's session, which could not get on if
        # they held the threads that TensorFlow's sessions share.
        threads = parameters.num_batch_threads + 1
        config = tf.compat.v1.ConfigProto(use_per_session_threads=True, inter_op_parallelism_threads=threads)
        self._session = GraphSession(config)
        self._lock = threading.Lock()
        self._queues: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
        self._tasks: dict[int, _Task] = {}
        self._numbers = itertools.count()

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """As GraphSession.run, with the rows of this request computed along with those of others.

        Raises:
            StatusError: INVALID_ARGUMENT for tensors without a common number of rows, or too many of them;
                UNAVAILABLE when the queue is full; what the run of the batch raised.
        """
        rows = self._rows(feeds)
        if rows == 0:  # nothing to wait for
            return self._run(feeds, fetches, timeout_ms)
        queue = self._queue(tuple(sorted(feeds)), tuple(fetches))
        task, number = _Task(feeds, timeout_ms), next(self._numbers)
        metrics.INPUT_BATCH.observe(rows)
        self._tasks[number] = task
        try:
            index = np.stack([np.full(rows, number), np.arange(rows)], axis=1)
            # No time limit here: it is the run of the batch that is cut short, when no task of it has time
            # left.
            self._session.run({f"{queue}/rows:0": index}, [f"{queue}/batch:0"])
        finally:
            del self._tasks[number]
        return task.result()

    def close(self) -> None:
        """Give the kernels' threads and memory back."""
        self._session.close()

    def _rows(self, feeds: Mapping[str, np.ndarray]) -> int:
        if not feeds:
            raise invalid_argument("Batching Run() must have at least one input tensor")
        if any(array.ndim == 0 for array in feeds.values()):
            raise invalid_argument("Batching Run() input tensors must have at least one dimension")
        (rows, *others) = {len(array) for array in feeds.values()}
        if others:
            raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
        largest = self._parameters.max_batch_size
        if rows > largest:
            raise invalid_argument(f"Task size {rows} is larger than maximum input batch size {largest}")
        return rows

    def _queue(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> str:
        """The name of the queue for requests with these inputs and outputs, made when it is first needed."""
        with self._lock:
            key = inputs, outputs
            if key not in self._queues:
                name = f"queue_{len(self._queues)}"
                self._add_kernel(name, outputs)
                self._queues[key] = name
            return self._queues[key]

    def _add_kernel(self, name: str, fetches: tuple[str, ...]) -> None:
        parameters = self._parameters

        def body(rows: tf.Tensor) -> tf.Tensor:
            return tf.numpy_function(lambda index: self._run_batch(index, fetches), [rows], tf.int64)

        with self._session.session.graph.as_default(), tf.name_scope(f"{name}/"):
            function = tf.function(body).get_concrete_function(tf.TensorSpec([None, 2], tf.int64))
            tf.raw_ops.BatchFunction(
                in_tensors=[tf.compat.v1.placeholder(tf.int64, [None, 2], "rows")],
                captured_tensors=function.captured_inputs,
                f=function,
                Tout=[tf.int64],
                num_batch_threads=parameters.num_batch_threads,
                max_batch_size=parameters.max_batch_size,
                batch_timeout_micros=parameters.batch_timeout_micros,
                max_enqueued_batches=parameters.max_enqueued_batches,
                allowed_batch_sizes=parameters.execution_sizes(),
                enable_large_batch_splitting=parameters.enable_large_batch_splitting,
                shared_name="batcher",  # one pool of threads,
                batching_queue=name,  # many queues
                name="batch",
            )
        self._session.extend()

    def _run_batch(self, index: np.ndarray, fetches: tuple[str, ...]) -> np.ndarray:
        """The body of a batch: run the rows that `index` lists; its last rows may be padding, which repeats
        one."""
        pieces = _pieces(index)
        tasks = [self._tasks.get(number) for number, _, _ in pieces]  # None: given up by its client meanwhile
        present = [(task, *piece[1:]) for task, piece in zip(tasks, pieces, strict=True) if task is not None]
        if present:
            try:
                self._run_pieces(present, fetches)
            except Exception as failure:
                for task, _, _ in present:
                    task.error = from_exception(failure)
        return index[:, 0]

    def _run_pieces(self, pieces: list[tuple[_Task, int, int]], fetches: tuple[str, ...]) -> None:
        names = list(pieces[0][0].feeds)
        feeds = {name: self._join(name, [task.feeds[name][a:b] for task, a, b in pieces]) for name in names}
        sizes = [stop - start for _, start, stop in pieces]
        now = time.perf_counter()
        for task in {id(task): task for task, _, _ in pieces}.values():
            metrics.QUEUING_LATENCY.observe((now - task.queued) * 1e6, "")
        metrics.BATCHED_RUNS.add()
        metrics.PROCESSED_BATCH.observe(sum(sizes))
        outputs = self._run(feeds, fetches, _time_left([task for task, _, _ in pieces]))
        for output in outputs:
            if output.ndim == 0:
                raise StatusError("FAILED_PRECONDITION", "Batched output tensor has 0 dimensions")
            if len(output) != sum(sizes):
                raise StatusError(
                    "FAILED_PRECONDITION",
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
                    "sizes of "
                    "the input tensors",
                )
        end = 0
        for (task, start, _), size in zip(pieces, sizes, strict=True):
            task.parts.setdefault(start, [output[end : end + size] for output in outputs])
            end += size

    def _join(self, name: str, arrays: list[np.ndarray]) -> np.ndarray:
        if len(arrays) == 1:
            return arrays[0]
        if len({array.shape[1:] for array in arrays}) > 1:
            if not self._parameters.pad_variable_length_inputs:
                raise StatusError(
                    "FAILED_PRECONDITION",
                    f"Tensors with name '{name}' from different tasks have different shapes and padding "
                    "is turned off. "
                    "Set pad_variable_length_inputs to true, or ensure that all tensors with the same "
                    "name have equal "
                    "dimensions starting with the first dim.",
                )
            arrays = _padded(arrays)
        return np.concatenate(arrays)


def _time_left(tasks: list[_Task]) -> int:
    """Milliseconds until the last of these tasks runs out of time; 0 if one has no limit."""
    if any(task.timeout_ms <= 0 for task in tasks):
        return 0
    now = time.perf_counter()
    left = max(task.timeout_ms - (now - task.queued) * 1e3 for task in tasks)
    if left <= 0:
        raise StatusError("RESOURCE_EXHAUSTED", "Run() timeout exceeded while waiting in batching queue")
    return max(int(left), 1)


def _pieces(index: np.ndarray) -> list[tuple[int, int, int]]:
    """The runs of consecutive rows of a task in a batch: (task, first row, row after the last)."""
    steps = np.diff(index, axis=0)
    starts = [0, *(np.flatnonzero((steps[:, 0] != 0) | (steps[:, 1] != 1)) + 1).tolist(), len(index)]
    return [
        (int(index[a, 0]), int(index[a, 1]), int(index[b - 1, 1]) + 1) for a, b in itertools.pairwise(starts)
    ]


def _padded(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """`arrays` with all dimensions but the first padded at the end to the largest, each with its own first
    element."""
    rank = arrays[0].ndim
    if rank > _MAX_PADDED_RANK or any(array.ndim != rank for array in arrays):
        raise invalid_argument(f"Only tensors with rank from 1 to {_MAX_PADDED_RANK} can be padded.")
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    result = []
    for array in arrays:
        full = np.full((len(array), *shape), array.flat[0] if array.size else 0, array.dtype)
        full[tuple(slice(size) for size in array.shape)] = array
        result.append(full)
    return result
