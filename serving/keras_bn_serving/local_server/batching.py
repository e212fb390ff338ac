"""Batching: concurrent requests for a model are computed in one run.

Requests with the same inputs and outputs share a queue of batches. Threads run the batches when they are due,
and hand every request its rows of the result. A request that fails does not fail those it was joined with.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_bn_serving.local_server import metrics
from keras_bn_serving.local_server.batch_queue import BatchQueue, Parameters, Piece, Task
from keras_bn_serving.local_server.status import from_exception
from keras_bn_serving.wire.errors import DeadlineExceededError, FailedPreconditionError, InvalidArgumentError

_Key = tuple[tuple[str, ...], tuple[str, ...]]  # the names of the inputs, in order, and of the outputs


class Batcher:
    """Runs a model in batches, each with one call of `run(feeds, fetches, timeout_ms)`. Thread-safe."""

    def __init__(self, run: Callable[..., list[np.ndarray]], parameters: Parameters) -> None:
        self._run = run
        self._parameters = parameters
        self._queues: dict[_Key, BatchQueue] = {}  # none is empty
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name="batches", daemon=True)
            for _ in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """As Engine.run, with the rows of this request computed along with those of others."""
        if not feeds:
            raise InvalidArgumentError("Batching Run() must have at least one input tensor")
        if any(array.ndim == 0 for array in feeds.values()):
            raise InvalidArgumentError("Batching Run() input tensors must have at least one dimension")
        (rows, *others) = {len(array) for array in feeds.values()}
        if others:
            raise InvalidArgumentError("Batching Run() input tensors must have equal 0th-dimension size")
        largest = self._parameters.max_batch_size
        if rows > largest:
            raise InvalidArgumentError(f"Task size {rows} is larger than maximum input batch size {largest}")
        if rows == 0:  # nothing to wait for
            return self._run(feeds, fetches, timeout_ms)
        metrics.INPUT_BATCH.observe(rows)
        task, key = Task(feeds, rows, timeout_ms), (tuple(sorted(feeds)), tuple(fetches))
        with self._changed:
            queue = self._queues.get(key) or BatchQueue(self._parameters)
            queue.put(task)
            self._queues[key] = queue
            self._changed.notify()
        # No time limit here: the run of the batch is cut short, when none of its tasks has time left.
        return task.result()

    def close(self) -> None:
        """Run what is waiting, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            pieces, fetches = batch
            self._run_pieces(pieces, fetches)
            with self._changed:
                for piece in pieces:
                    piece.task.rows_left -= piece.rows
                    if not piece.task.rows_left:
                        piece.task.done.set()

    def _next_batch(self) -> tuple[list[Piece], Sequence[str]] | None:
        """Wait for the batch that is due first: its pieces and their outputs' names. None after `close`."""
        with self._changed:
            while True:
                left = threading.TIMEOUT_MAX
                if self._queues:
                    key = min(self._queues, key=lambda key: self._queues[key].due())
                    left = self._queues[key].due() - time.perf_counter()
                    if left <= 0 or self._closed:
                        return self._take(key), key[1]
                elif self._closed:
                    return None
                self._changed.wait(min(left, threading.TIMEOUT_MAX))

    def _take(self, key: _Key) -> list[Piece]:
        pieces = self._queues[key].take()
        if not self._queues[key]:
            del self._queues[key]
        if self._queues:  # for another thread
            self._changed.notify()
        return pieces

    def _run_pieces(self, pieces: list[Piece], fetches: Sequence[str]) -> None:
        """Run pieces of tasks together, or each alone if that fails: one may be at fault for all."""
        try:
            self._run_together(pieces, fetches)
        except Exception as failure:
            if len(pieces) > 1 and not isinstance(failure, DeadlineExceededError):
                for piece in pieces:
                    self._run_pieces([piece], fetches)
            else:
                error = from_exception(failure)
                for piece in pieces:
                    piece.task.error = error

    def _run_together(self, pieces: list[Piece], fetches: Sequence[str]) -> None:
        now = time.perf_counter()
        for task in {piece.task for piece in pieces}:
            metrics.QUEUING_LATENCY.observe((now - task.queued) * 1e6, "")
        left = [piece.task.timeout_ms - (now - piece.task.queued) * 1e3 for piece in pieces]
        limited = all(piece.task.timeout_ms > 0 for piece in pieces)
        limit = max(int(max(left)), 1) if limited else 0  # until no task has time left
        given = sum(piece.rows for piece in pieces)
        rows = self._parameters.execution_size(given)
        feeds = {name: self._join(name, pieces, rows - given) for name in pieces[0].task.feeds}
        metrics.BATCHED_RUNS.add()
        metrics.PROCESSED_BATCH.observe(rows)
        metrics.PADDING.observe(rows - given, str(rows))
        outputs = self._run(feeds, fetches, limit)
        if any(output.ndim == 0 for output in outputs):
            raise FailedPreconditionError("Batched output tensor has 0 dimensions")
        if any(len(output) != rows for output in outputs):
            what = "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes"
            raise FailedPreconditionError(f"{what} of the input tensors")
        end = 0
        for piece in pieces:
            begin, end = end, end + piece.rows
            piece.task.parts[piece.start] = [output[begin:end] for output in outputs]

    def _join(self, name: str, pieces: list[Piece], padding: int) -> np.ndarray:
        """A tensor of all pieces, followed by `padding` times the first row of the last."""
        arrays = [piece.task.feeds[name][piece.start : piece.stop] for piece in pieces]
        arrays += [arrays[-1][:1]] * padding
        if len(arrays) == 1:
            return arrays[0]
        if len({array.dtype for array in arrays}) > 1:
            raise InvalidArgumentError("Only tensors of one type can be joined.")
        if len({array.ndim for array in arrays}) > 1:
            raise InvalidArgumentError("Only tensors of one rank can be joined.")
        if len({array.shape[1:] for array in arrays}) > 1:
            if not self._parameters.pad_variable_length_inputs:
                raise FailedPreconditionError("Only tensors of one shape can be joined.")
            arrays = _padded(arrays)
        return np.concatenate(arrays)


def _padded(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Arrays of one shape: each is padded at the end of every dimension with its own first element."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    padded = []
    for array in arrays:
        full = np.full((len(array), *shape), array.flat[0] if array.size else 0, array.dtype)
        full[tuple(slice(size) for size in array.shape)] = array
        padded.append(full)
    return padded
