"""Deadlines of runs that block."""

import threading

import pytest

from keras_bn_serving.local_server.engines.deadlines import Deadlines
from keras_bn_serving.wire.errors import DeadlineExceededError

LONG = 60.0


class Cancelled(Exception):
    """What a run raises that was cancelled."""


def blocked(deadlines: Deadlines, seconds: float) -> None:
    """A run that only ends when it is cancelled."""
    cancelled = threading.Event()
    with deadlines.within(seconds, cancelled.set):
        assert cancelled.wait(LONG), "it was not cancelled"
        raise Cancelled


def test_a_run_that_takes_too_long_is_cancelled() -> None:
    with pytest.raises(DeadlineExceededError, match="Timed out waiting for notification"):
        blocked(Deadlines(), 0.01)


def test_an_earlier_deadline_does_not_wait_for_a_later_one() -> None:
    deadlines = Deadlines()
    with (
        deadlines.within(LONG, lambda: pytest.fail("its time was not up")),
        pytest.raises(DeadlineExceededError),
    ):
        blocked(deadlines, 0.01)


def test_a_later_deadline_is_kept_after_an_earlier_run_has_ended() -> None:
    deadlines = Deadlines()
    with deadlines.within(0.05, lambda: None):
        pass
    with pytest.raises(DeadlineExceededError):
        blocked(deadlines, 0.2)


def test_a_run_is_cancelled_again_if_it_had_not_begun() -> None:
    calls, twice = [], threading.Event()

    def cancel() -> None:
        calls.append(1)
        if len(calls) > 1:
            twice.set()

    with Deadlines().within(0.0, cancel):
        assert twice.wait(LONG)


def test_a_run_that_has_ended_is_not_cancelled() -> None:
    """Its request may be another's by then."""
    deadlines, calls = Deadlines(), []
    for _ in range(1000):
        ended = threading.Event()
        with deadlines.within(1e-5, lambda ended=ended: calls.append(ended.is_set())):
            pass
        ended.set()
    with pytest.raises(DeadlineExceededError):
        blocked(deadlines, 0.01)
    assert not any(calls)


def test_a_run_in_time_has_its_own_errors() -> None:
    with pytest.raises(KeyError), Deadlines().within(LONG, lambda: None):
        raise KeyError("x")


def test_many_runs_at_once() -> None:
    deadlines, ends = Deadlines(), []

    def run(seconds: float) -> None:
        try:
            blocked(deadlines, seconds)
        except DeadlineExceededError:
            ends.append(seconds)

    threads = [threading.Thread(target=run, args=(number / 100,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(ends) == 20
