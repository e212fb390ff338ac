"""Batching: what a request gets does not depend on the requests it was computed with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_bn_serving.local_server import metrics
from keras_bn_serving.local_server.batch_queue import Parameters
from keras_bn_serving.local_server.batching import Batcher
from keras_bn_serving.wire.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    OutOfRangeError,
    ServingError,
)


class _Model:
    """y = 2x, and a record of the batches it was run on."""

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        if not self.gate.wait(timeout_ms / 1e3 if timeout_ms else 10):
            raise DeadlineExceededError("Timed out waiting for notification")
        self.batches.append(feeds["x:0"])
        if np.any(feeds["x:0"] < 0):
            raise OutOfRangeError("negative")
        return [2 * feeds["x:0"] for _ in fetches]


@pytest.fixture
def model() -> _Model:
    return _Model()


@pytest.fixture
def batcher(model: _Model) -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def make(**parameters: object) -> Batcher:
        defaults = {"num_batch_threads": 1, "batch_timeout_micros": 100_000, "max_batch_size": 8}
        made.append(Batcher(model, Parameters(**defaults | parameters)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    model.gate.set()
    for one in made:
        one.close()


def _ask(batcher: Batcher, *arrays: np.ndarray) -> list[np.ndarray | ServingError]:
    """The results of requests sent at the same time."""

    def one(array: np.ndarray) -> np.ndarray | ServingError:
        try:
            return batcher.run({"x:0": array}, ["y:0"], 5000)[0]
        except ServingError as error:
            return error

    with ThreadPoolExecutor(len(arrays)) as pool:
        return list(pool.map(one, arrays))


def test_requests_are_joined_and_each_gets_its_rows(model: _Model, batcher: Callable[..., Batcher]) -> None:
    arrays = [np.full((rows, 2), 10.0 * rows) for rows in (1, 2, 3)]
    for result, array in zip(_ask(batcher(), *arrays), arrays, strict=True):
        np.testing.assert_array_equal(result, 2 * array)
    assert sum(map(len, model.batches)) == 6
    assert len(model.batches) < 3


def test_batches_are_filled_up_to_an_allowed_size(model: _Model, batcher: Callable[..., Batcher]) -> None:
    (result,) = _ask(batcher(allowed_batch_sizes=(4, 8)), np.arange(3.0))
    np.testing.assert_array_equal(result, [0, 2, 4])
    (batch,) = model.batches
    np.testing.assert_array_equal(batch, [0, 1, 2, 0])  # with the first row of the last request
    assert 'padding_size_sum{execution_batch_size="4"} 1\n' in metrics.exposition()


def test_large_requests_are_split_and_put_together_again(
    model: _Model, batcher: Callable[..., Batcher]
) -> None:
    splitting = batcher(enable_large_batch_splitting=True, max_execution_batch_size=3)
    array = np.arange(16.0).reshape(8, 2)
    (result,) = _ask(splitting, array)
    np.testing.assert_array_equal(result, 2 * array)
    assert max(map(len, model.batches)) <= 3


def test_other_dimensions_are_padded_with_the_first_element(
    model: _Model, batcher: Callable[..., Batcher]
) -> None:
    results = _ask(batcher(pad_variable_length_inputs=True), np.full((1, 2), 5.0), np.full((1, 4), 7.0))
    if len(model.batches) == 1:
        np.testing.assert_array_equal(results[0], [[10, 10, 10, 10]])
    np.testing.assert_array_equal(results[1], [[14, 14, 14, 14]])


@pytest.mark.parametrize(
    "bad", [np.array([-1.0]), np.zeros((1, 2, 3)), np.float32([1])], ids=["values", "rank", "type"]
)
def test_a_bad_request_fails_alone(bad: np.ndarray) -> None:
    def picky(
        feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        x = feeds["x:0"]
        if x.ndim != 1 or x.dtype != np.float64 or np.any(x < 0):
            raise InvalidArgumentError("not this")
        return [2 * x]

    batcher = Batcher(picky, Parameters(batch_timeout_micros=100_000, max_batch_size=3))
    for results in (_ask(batcher, bad, np.array([4.0]), np.array([5.0])) for _ in range(3)):
        assert results[0].status == "INVALID_ARGUMENT: not this"
        assert [list(result) for result in results[1:]] == [[8], [10]]
    batcher.close()


def test_a_full_queue_refuses(model: _Model, batcher: Callable[..., Batcher]) -> None:
    model.gate.clear()
    full = batcher(max_enqueued_batches=1, max_batch_size=1, batch_timeout_micros=0)
    threading.Timer(1.0, model.gate.set).start()
    results = _ask(full, *[np.array([1.0])] * 8)
    refused = [result for result in results if isinstance(result, ServingError)]
    assert refused
    assert {result.code for result in refused} == {"UNAVAILABLE"}


def test_a_request_that_runs_out_of_time_leaves_the_queue_working(
    model: _Model, batcher: Callable[..., Batcher]
) -> None:
    model.gate.clear()
    queue = batcher()
    with pytest.raises(DeadlineExceededError):
        queue.run({"x:0": np.array([1.0])}, ["y:0"], 2000)
    model.gate.set()
    np.testing.assert_array_equal(_ask(queue, np.array([4.0]))[0], [8])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "Batching Run() must have at least one input tensor"),
        ({"x:0": np.float64(1)}, "Batching Run() input tensors must have at least one dimension"),
        (
            {"x:0": np.zeros(2), "z:0": np.zeros(3)},
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
        ({"x:0": np.zeros(9)}, "Task size 9 is larger than maximum input batch size 8"),
    ],
)
def test_what_cannot_be_batched(
    batcher: Callable[..., Batcher], feeds: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ServingError) as error:
        batcher().run(feeds, ["y:0"])
    assert error.value.status == f"INVALID_ARGUMENT: {message}"


def test_no_rows_are_answered_at_once(batcher: Callable[..., Batcher]) -> None:
    assert batcher().run({"x:0": np.zeros((0, 3))}, ["y:0"])[0].shape == (0, 3)
