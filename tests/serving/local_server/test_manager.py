"""The life of versions: availability is kept whatever happens to a version."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from keras_bn_serving.local_server.flags import Flags
from keras_bn_serving.local_server.manager import AVAILABLE, END, LOADING, START, UNLOADING, Manager
from keras_bn_serving.wire.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ServingError,
)


class _Fake:
    def __init__(self, path: str) -> None:
        self.path = path
        self.closed = False

    def close(self) -> None:
        self.closed = True


class _Disk:
    """A loader whose paths may be bad, and may take until they are let go."""

    def __init__(self) -> None:
        self.bad: set[str] = set()
        self.held: dict[str, threading.Event] = {}
        self.tries: list[str] = []

    def __call__(self, name: str, path: str) -> _Fake:
        self.tries.append(path)
        if path in self.held:
            self.held[path].wait(10)
        if path in self.bad:
            raise DataLossError(f"bad {path}")
        return _Fake(path)


@pytest.fixture
def disk() -> _Disk:
    return _Disk()


@pytest.fixture
def manager(disk: _Disk) -> Iterator[Manager]:
    manager = Manager(disk, Flags(max_num_load_retries=0))
    yield manager
    for event in disk.held.values():
        event.set()
    manager.close(5)


def _states(manager: Manager) -> dict[int, int]:
    try:
        return {version.number: version.state for version in manager.status("m")}
    except ServingError:
        return {}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.005)


def test_the_highest_available_version_is_the_latest(manager: Manager) -> None:
    manager.want({"m": {1: "a", 3: "c", 2: "b"}})
    _until(lambda: set(_states(manager).values()) == {AVAILABLE})
    with manager.use("m") as (number, servable):
        assert (number, servable.path) == (3, "c")
    with manager.use("m", 1) as (number, _):
        assert number == 1


def test_a_version_serves_until_its_successor_is_up(manager: Manager, disk: _Disk) -> None:
    manager.want({"m": {1: "a"}})
    assert manager.wait(["m"]) == []
    disk.held["b"] = threading.Event()
    manager.want({"m": {2: "b"}})
    _until(lambda: _states(manager) == {1: AVAILABLE, 2: LOADING})
    with manager.use("m") as (number, _):
        assert number == 1
    disk.held["b"].set()
    _until(lambda: _states(manager) == {1: END, 2: AVAILABLE})


def test_a_version_ends_with_its_last_request(manager: Manager) -> None:
    manager.want({"m": {1: "a"}})
    manager.wait(["m"])
    with manager.use("m") as (_, servable):
        manager.want({"m": {2: "b"}})
        _until(lambda: _states(manager) == {1: UNLOADING, 2: AVAILABLE})
        with pytest.raises(NotFoundError, match="Servable not found for request: Specific"):
            manager.use("m", 1).__enter__()
        assert not servable.closed
    _until(lambda: servable.closed)
    _until(lambda: _states(manager)[1] == END)


def test_a_failed_version_leaves_the_old_one_and_is_not_tried_again(manager: Manager, disk: _Disk) -> None:
    disk.bad = {"b"}
    manager.want({"m": {1: "a"}})
    manager.wait(["m"])
    manager.want({"m": {2: "b"}})
    _until(lambda: _states(manager) == {1: AVAILABLE, 2: END})
    assert str(manager.status("m", 2)[0].error) == "bad b"
    manager.want({"m": {1: "a"}})
    manager.want({"m": {2: "b"}, "other": {1: "d"}})
    manager.wait(["other"])  # decided in the same round as the version of m
    assert disk.tries == ["a", "b", "d"]
    manager.want({"m": {3: "c"}})
    _until(lambda: _states(manager) == {1: END, 2: END, 3: AVAILABLE})


def test_a_failed_version_may_return_once_all_have_ended(manager: Manager, disk: _Disk) -> None:
    disk.bad = {"b"}
    manager.want({"m": {2: "b"}})
    ((name, version),) = manager.wait(["m"])
    assert (name, version.error.status) == ("m", "DATA_LOSS: bad b")
    manager.want({"m": {}})
    disk.bad = set()
    manager.want({"m": {2: "b"}})
    _until(lambda: _states(manager) == {2: AVAILABLE})


def test_an_unloaded_version_may_return(manager: Manager, disk: _Disk) -> None:
    for path in ("a", "a again"):
        manager.want({"m": {1: path}})
        _until(lambda: _states(manager) == {1: AVAILABLE})
        manager.want({"m": {}})
        _until(lambda: _states(manager) == {1: END})
    assert disk.tries == ["a", "a again"]


def test_a_version_wanted_again_while_it_is_unloaded_comes_back(manager: Manager) -> None:
    manager.want({"m": {1: "a"}})
    manager.wait(["m"])
    with manager.use("m"):
        manager.want({})
        _until(lambda: _states(manager) == {1: UNLOADING})
        manager.want({"m": {1: "a"}})
    assert manager.wait(["m"]) == []
    with manager.use("m") as (number, _):
        assert number == 1


def test_loads_are_retried(disk: _Disk) -> None:
    disk.bad = {"a"}
    manager = Manager(disk, Flags(max_num_load_retries=3, load_retry_interval_micros=10_000))
    manager.want({"m": {1: "a"}})
    assert len(manager.wait(["m"])) == 1
    assert disk.tries == ["a"] * 4
    manager.close(1)


def test_retries_end_when_the_version_is_no_longer_wanted(disk: _Disk) -> None:
    disk.bad = {"a"}
    manager = Manager(disk, Flags(max_num_load_retries=1000, load_retry_interval_micros=10_000))
    manager.want({"m": {1: "a"}})
    _until(lambda: len(disk.tries) > 2)
    manager.want({"m": {}})
    _until(lambda: _states(manager) == {1: END})
    manager.close(1)


def test_labels(manager: Manager) -> None:
    with pytest.raises(FailedPreconditionError, match="Request to assign label to version 1 of model m"):
        manager.label({"m": {"stable": 1}})
    manager.want({"m": {1: "a", 2: "b"}})
    _until(lambda: set(_states(manager).values()) == {AVAILABLE})
    manager.label({"m": {"stable": 1}})
    with manager.use("m", label="stable") as (number, _):
        assert number == 1
    with pytest.raises(ServingError):
        manager.label({"m": {"stable": 2, "new": 9}})
    assert manager.models()["m"][1] == {"stable": 1}, "a refused configuration changes nothing"
    manager.label({"m": {}})
    with pytest.raises(InvalidArgumentError, match="Unrecognized servable version label: stable"):
        manager.use("m", label="stable").__enter__()


def test_no_request_fails_while_versions_come_and_go(manager: Manager) -> None:
    """Many swaps under load: every request finds a version, and never a closed one."""
    manager.want({"m": {1: "1"}})
    manager.wait(["m"])
    stop, failures = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                with manager.use("m") as (_, servable):
                    time.sleep(0.0005)
                    assert not servable.closed
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 20):
        manager.want({"m": {number: str(number)}})
        _until(lambda number=number: _states(manager)[number] == AVAILABLE)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_version_dropped_before_it_was_loaded_ends(manager: Manager, disk: _Disk) -> None:
    disk.held["b"] = threading.Event()
    manager.want({"m": {1: "a", 2: "b"}})
    assert START in _states(manager).values()
    manager.want({"m": {}})
    disk.held["b"].set()
    _until(lambda: set(_states(manager).values()) == {END})
