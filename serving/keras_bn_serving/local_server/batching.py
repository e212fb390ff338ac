"""Batching: concurrent requests joined on TensorFlow's own batching kernel (the one inside TF Serving).

The kernel (`BatchFunction`) decides which requests make a batch: it has the queue, the threads, the time
limits, the allowed sizes and the splitting of large requests. What goes through it are row numbers only,
[task, row] pairs; the body of a batch fetches those rows from the tasks, runs the model, and hands every task
its rows of the result. So tensors may be padded to one shape, and a bad request fails without its batch.
"""

import dataclasses
import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bn_serving.local_server import metrics
from keras_bn_serving.local_server.engines.tensorflow import GraphSession
from keras_bn_serving.local_server.status import from_exception, require
from keras_bn_serving.wire.errors import FailedPreconditionError, ServingError


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
            what = f"{name} must be {'positive' if name in positive else 'non-negative'}; was {number}"
            require(number >= (name in positive), what)
        sizes, largest = self.execution_sizes(), self.largest_execution()
        what = f"Last entry in allowed_batch_sizes must match max_batch_size; expected {largest}"
        require(not sizes or sizes[-1] == largest, what)

    @classmethod
    def of(cls, proto: Any) -> "Parameters":
        """The parameters a BatchingParameters message holds; INVALID_ARGUMENT if they make no sense."""
        given = {field.name: getattr(value, "value", value) for field, value in proto.ListFields()}
        given.pop("thread_pool_name", None)
        return cls(**given)

    def largest_execution(self) -> int:
        """The most rows that are run at once."""
        return (self.enable_large_batch_splitting and self.max_execution_batch_size) or self.max_batch_size

    def execution_sizes(self) -> list[int]:
        """The numbers of rows that may be run at once; empty: any. The last is where requests are split."""
        any_size = range(1, self.largest_execution() + 1) if self.enable_large_batch_splitting else ()
        return list(self.allowed_batch_sizes or any_size)


class _Task:
    """One request in the queue: its tensors, and the parts of its result by first row."""

    def __init__(self, feeds: Mapping[str, np.ndarray], timeout_ms: int) -> None:
        self.feeds = feeds
        self.timeout_ms = timeout_ms
        self.parts: dict[int, list[np.ndarray]] = {}
        self.error: ServingError | None = None
        self.queued = time.perf_counter()

    def result(self) -> list[np.ndarray]:
        if self.error is not None:
            raise self.error
        parts = [self.parts[start] for start in sorted(self.parts)]
        return [np.concatenate(output) for output in zip(*parts, strict=True)] if parts[1:] else parts[0]


class Batcher:
    """Runs a model in batches, each with one call of `run(feeds, fetches, timeout_ms)`. Thread-safe."""

    def __init__(self, run: Callable[..., list[np.ndarray]], parameters: Parameters) -> None:
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
        """As GraphSession.run, with the rows of this request computed along with those of others."""
        require(feeds, "Batching Run() must have at least one input tensor")
        scalars = any(array.ndim == 0 for array in feeds.values())
        require(not scalars, "Batching Run() input tensors must have at least one dimension")
        (rows, *others) = {len(array) for array in feeds.values()}
        require(not others, "Batching Run() input tensors must have equal 0th-dimension size")
        largest = self._parameters.max_batch_size
        require(rows <= largest, f"Task size {rows} is larger than maximum input batch size {largest}")
        if rows == 0:  # nothing to wait for
            return self._run(feeds, fetches, timeout_ms)
        queue = self._queue(feeds, tuple(fetches))
        task, number = _Task(feeds, timeout_ms), next(self._numbers)
        metrics.INPUT_BATCH.observe(rows)
        self._tasks[number] = task
        try:
            index = np.stack([np.full(rows, number), np.arange(rows)], axis=1)
            # No time limit here: the run of the batch is cut short, when none of its tasks has time left.
            self._session.run({f"{queue}/rows:0": index}, [f"{queue}/batch:0"])
        finally:
            del self._tasks[number]
        return task.result()

    def close(self) -> None:
        """Give the kernels' threads and memory back."""
        self._session.close()

    def _queue(self, feeds: Mapping[str, np.ndarray], fetches: tuple[str, ...]) -> str:
        """The name of the queue for requests with these inputs and outputs, made when it is first needed."""
        key = (tuple(sorted(feeds)), fetches)
        with self._lock:
            if key not in self._queues:
                name = f"queue_{len(self._queues)}"
                self._add_kernel(name, fetches)
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
        """The body of a batch: run the rows `index` lists, of which the last may repeat one as padding."""
        pieces = [
            (task, start, stop)
            for number, start, stop in _pieces(index)
            if (task := self._tasks.get(number)) is not None  # else given up by its client meanwhile
        ]
        if pieces:
            self._run_pieces(pieces, fetches)
        return index[:, 0]

    def _run_pieces(self, pieces: list[tuple[_Task, int, int]], fetches: tuple[str, ...]) -> None:
        """Run pieces of tasks together, or each alone if that fails: one may be at fault for all."""
        try:
            self._run_together(pieces, fetches)
        except Exception as failure:
            error = from_exception(failure)
            if len(pieces) == 1 or error.code == "DEADLINE_EXCEEDED":
                for task, _, _ in pieces:
                    task.error = error
            else:
                for piece in pieces:
                    self._run_pieces([piece], fetches)

    def _run_together(self, pieces: list[tuple[_Task, int, int]], fetches: tuple[str, ...]) -> None:
        names = list(pieces[0][0].feeds)
        feeds = {name: self._join([task.feeds[name][a:b] for task, a, b in pieces]) for name in names}
        ends = np.cumsum([stop - start for _, start, stop in pieces])
        now = time.perf_counter()
        for task in {task for task, _, _ in pieces}:
            metrics.QUEUING_LATENCY.observe((now - task.queued) * 1e6, "")
        metrics.BATCHED_RUNS.add()
        metrics.PROCESSED_BATCH.observe(ends[-1])
        left = [task.timeout_ms - (now - task.queued) * 1e3 for task, _, _ in pieces if task.timeout_ms > 0]
        limit = max(int(max(left)), 1) if len(left) == len(pieces) else 0  # until no task has time left
        outputs = self._run(feeds, fetches, limit)
        if any(output.ndim == 0 for output in outputs):
            raise FailedPreconditionError("Batched output tensor has 0 dimensions")
        if any(len(output) != ends[-1] for output in outputs):
            raise FailedPreconditionError(f"Batched output tensor has other than {ends[-1]} rows")
        for (task, start, stop), end in zip(pieces, ends, strict=True):
            task.parts.setdefault(start, [output[end - (stop - start) : end] for output in outputs])

    def _join(self, arrays: list[np.ndarray]) -> np.ndarray:
        require(len({array.dtype for array in arrays}) == 1, "Only tensors of one type can be joined.")
        if not self._parameters.pad_variable_length_inputs or len({array.shape[1:] for array in arrays}) == 1:
            return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        shape = np.max([array.shape[1:] for array in arrays], axis=0)
        padded = []
        for array in arrays:  # at the end of each dimension but the first, with its own first element
            full = np.full((len(array), *shape), array.flat[0] if array.size else 0, array.dtype)
            full[tuple(slice(size) for size in array.shape)] = array
            padded.append(full)
        return np.concatenate(padded)


def _pieces(index: np.ndarray) -> list[tuple[int, int, int]]:
    """The runs of consecutive rows of a task in a batch: (task, first row, row after the last)."""
    steps = np.diff(index, axis=0)
    starts = [0, *(np.flatnonzero((steps[:, 0] != 0) | (steps[:, 1] != 1)) + 1).tolist(), len(index)]
    return [
        (int(index[a, 0]), int(index[a, 1]), int(index[b - 1, 1]) + 1) for a, b in itertools.pairwise(starts)
    ]
