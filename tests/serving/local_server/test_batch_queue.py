"""The queue of batches: the rules of TensorFlow Serving's scheduler, and its texts for a full queue."""

from __future__ import annotations

import time

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from keras_bn_serving.local_server.batch_queue import BatchQueue, Parameters, Task
from keras_bn_serving.local_server.catalog import BatchingParameters
from keras_bn_serving.wire.errors import InvalidArgumentError, UnavailableError


def _task(rows: int) -> Task:
    return Task({"x:0": np.arange(rows)}, rows, 0)


def _put(queue: BatchQueue, *sizes: int) -> list[int]:
    """The numbers of the requests, among those of these sizes, that are taken."""
    taken = []
    for number, rows in enumerate(sizes):
        try:
            queue.put(_task(rows))
            taken.append(number)
        except UnavailableError:
            pass
    return taken


def _batches(queue: BatchQueue) -> list[list[int]]:
    return [[piece.rows for piece in queue.take()] for _ in range(len(queue))]


def test_a_request_that_does_not_fit_opens_the_next_batch() -> None:
    queue = BatchQueue(Parameters(max_batch_size=4))
    _put(queue, 1, 2, 3, 1, 1)
    assert _batches(queue) == [[1, 2], [3, 1], [1]]


def test_where_requests_may_be_split_batches_are_full() -> None:
    queue = BatchQueue(
        Parameters(max_batch_size=7, enable_large_batch_splitting=True, max_execution_batch_size=3)
    )
    _put(queue, 2, 5, 7)
    assert _batches(queue) == [[2, 1], [3], [1, 2], [3], [2]]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    splitting=st.booleans(),
    largest=st.integers(1, 9),
)
def test_every_row_is_in_one_batch_and_none_is_too_large(
    sizes: list[int], splitting: bool, largest: int
) -> None:
    queue = BatchQueue(
        Parameters(
            max_batch_size=9,
            max_enqueued_batches=1000,
            enable_large_batch_splitting=splitting,
            max_execution_batch_size=largest,
        )
    )
    tasks = [_task(rows) for rows in sizes]
    for task in tasks:
        queue.put(task)
    batches = [queue.take() for _ in range(len(queue))]
    assert max(sum(piece.rows for piece in batch) for batch in batches) <= (largest if splitting else 9)
    rows = [
        (piece.task, row) for batch in batches for piece in batch for row in range(piece.start, piece.stop)
    ]
    assert rows == [(task, row) for task in tasks for row in range(task.rows)]


def test_a_full_queue_refuses_in_the_words_of_the_original() -> None:
    queue = BatchQueue(Parameters(max_batch_size=2, max_enqueued_batches=1))
    assert _put(queue, 1, 2, 1) == [0, 2]
    with pytest.raises(UnavailableError) as error:
        queue.put(_task(1))
    assert str(error.value) == (
        "The batch scheduling queue to which this task was submitted is full; "
        "currently 1 batches enqueued and max_enqueued_batches is 1"
    )


def test_a_request_that_would_be_split_into_too_many_batches_is_refused_whole() -> None:
    queue = BatchQueue(
        Parameters(
            max_batch_size=8,
            max_enqueued_batches=2,
            enable_large_batch_splitting=True,
            max_execution_batch_size=3,
        )
    )
    assert _put(queue, 2, 5, 3) == [0, 2]
    assert _batches(queue) == [[2, 1], [2]]


def test_without_waiting_batches_there_is_still_the_open_one() -> None:
    assert _put(BatchQueue(Parameters(max_batch_size=2, max_enqueued_batches=0)), 1, 1, 1) == [0, 1]


def test_a_batch_is_due_when_it_is_full_followed_or_old() -> None:
    queue = BatchQueue(Parameters(max_batch_size=4, batch_timeout_micros=10_000_000))
    _put(queue, 3)
    assert queue.due() > time.perf_counter() + 1
    _put(queue, 1)
    assert queue.due() <= time.perf_counter()
    queue.take()
    _put(queue, 3, 3)
    assert queue.due() <= time.perf_counter()
    queue.take()
    assert queue.due() > time.perf_counter() + 1


@pytest.mark.parametrize(
    "text",
    [
        "max_batch_size { value: 0 }",
        "num_batch_threads { value: 0 }",
        "batch_timeout_micros { value: -1 }",
        "max_enqueued_batches { value: -1 }",
    ],
)
def test_parameters_without_sense_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r".* must be"):
        Parameters.of(text_format.Parse(text, BatchingParameters()))


def test_the_last_allowed_size_is_the_largest_batch() -> None:
    message = "^Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8$"
    with pytest.raises(InvalidArgumentError, match=message):
        Parameters(max_batch_size=8, allowed_batch_sizes=(2, 4))


def test_rows_are_filled_up_to_the_next_allowed_size() -> None:
    parameters = Parameters(max_batch_size=8, allowed_batch_sizes=(2, 8))
    assert [parameters.execution_size(rows) for rows in (1, 2, 3, 8)] == [2, 2, 8, 8]
    assert Parameters().execution_size(3) == 3
