"""A SavedModel in a session: fed whatever is sent, and stopped when its time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving.local_server.executor import Executor
from serving.local_server.status import StatusError


def _executor(path: Path) -> Executor:
    return Executor(str(path / "1"), ["serve"], tf.compat.v1.ConfigProto())


@pytest.fixture(scope="module")
def three(models: Path) -> Iterator[Executor]:
    executor = _executor(models / "three")
    yield executor
    executor.close()


@pytest.mark.parametrize("shape", [(), (2,), (0,), (2, 3), (1, 1, 1, 2)])
def test_shapes_of_the_signature_do_not_bind(three: Executor, shape: tuple[int, ...]) -> None:
    """The signature says [-1]; the graph adds whatever it is fed, as in tensorflow_model_server."""
    x = np.ones(shape, np.float32)
    (y,) = three.run({"x:0": x}, ["y:0"])
    np.testing.assert_array_equal(y, x + 1)
    assert y.dtype == np.float32


@pytest.mark.parametrize(
    ("feeds", "fetches", "error"),
    [
        (
            {"x:0": np.array([True])},
            ["y:0"],
            "INVALID_ARGUMENT: Expects arg[0] to be float but bool is provided",
        ),
        (
            {"x:0": np.float32([1])},
            [],
            "INVALID_ARGUMENT: Must specify at least one target to fetch or execute.",
        ),
        (
            {"x:0": np.float32([1])},
            ["z:0"],
            "INVALID_ARGUMENT: Tensor z:0, specified in either feed_devices or "
            "fetch_devices was not found in the Graph",
        ),
        (
            {"x:0": np.float32([1])},
            ["y:7"],
            "OUT_OF_RANGE: Node 'y' (type: 'AddV2', num of outputs: 1) does not have output 7",
        ),
    ],
)
def test_errors_are_the_runtime_s(
    three: Executor, feeds: dict[str, np.ndarray], fetches: list[str], error: str
) -> None:
    with pytest.raises(StatusError) as raised:
        three.run(feeds, fetches)
    assert str(raised.value) == error


def test_a_run_is_cancelled_when_its_time_is_up(models: Path) -> None:
    executor = _executor(models / "slow")
    started = time.monotonic()
    with pytest.raises(StatusError, match="DEADLINE_EXCEEDED"):
        executor.run({"n:0": np.int32([2**31 - 1])}, ["y:0"], timeout_ms=100)
    assert time.monotonic() - started < 60, "it was not run to its end, which takes an hour"
    executor.close()


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "NOT_FOUND"),
        ({"export.meta": b""}, "UNIMPLEMENTED"),
        ({"saved_model.pb": b"no such thing"}, "DATA_LOSS"),
        ({"saved_model.pb": b""}, "NOT_FOUND"),
    ],
)
def test_folders_that_hold_no_model(tmp_path: Path, files: dict[str, bytes], code: str) -> None:
    (tmp_path / "1").mkdir()
    for name, data in files.items():
        (tmp_path / "1" / name).write_bytes(data)
    with pytest.raises(StatusError) as raised:
        _executor(tmp_path)
    assert raised.value.code == code
