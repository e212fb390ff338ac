"""Executes the steps of operations in the calling thread. `async_carrier` does so in tasks.

A carrier belongs to one process, and that of asyncio to one event loop: so do its connections, the count of
what is in flight, and what others wait for.
"""

import concurrent.futures
import os
import threading
import time
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, TypeVar

from keras_bn_serving.client.exchange import Exchange, Operation, Pause, Shared
from keras_bn_serving.client.transport import Transport
from keras_bn_serving.wire.errors import DeadlineExceededError, ServingError, with_code

T = TypeVar("T")


class Carrier:
    """Carries operations out in the thread that asks."""

    def __init__(self, transport: Transport, max_in_flight: int) -> None:
        self.transport = transport
        self.process = os.getpid()
        self._slots = threading.Semaphore(max_in_flight)
        self._shared: dict[Hashable, concurrent.futures.Future[Any]] = {}

    def run(self, operation: Operation[T]) -> T:
        """Return the result of an operation, or raise its error."""
        try:
            step = next(operation)
            while True:
                try:
                    result = self._do(step)
                except ServingError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(result)
        except StopIteration as end:
            return end.value

    def _do(self, step: Exchange | Pause | Shared) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Shared):
            return self._share(step)
        started = time.monotonic()
        if not self._slots.acquire(timeout=step.timeout):
            raise no_slot(step)
        try:
            return step.result(self.transport.send(remaining(step, started)))
        finally:
            self._slots.release()

    def _share(self, step: Shared) -> Any:
        while True:
            mine: concurrent.futures.Future[Any] = concurrent.futures.Future()
            first = self._shared.setdefault(step.key, mine)
            if first is mine:
                try:
                    mine.set_result(self.run(step.operation()))
                except ServingError as error:
                    mine.set_exception(error)
                except BaseException:
                    mine.cancel()
                    raise
                finally:
                    del self._shared[step.key]
                return mine.result()
            try:
                return first.result(max(0.0, step.deadline - time.monotonic()))
            except (DeadlineExceededError, concurrent.futures.CancelledError):
                continue  # the first had less time, or was interrupted
            except ServingError as error:
                raise again(error) from error
            except concurrent.futures.TimeoutError as error:
                raise waited() from error


def remaining(step: Exchange, started: float) -> Exchange:
    """Return the exchange with the time that is left of it."""
    return replace(step, timeout=max(1e-6, step.timeout - (time.monotonic() - started)))


def no_slot(step: Exchange) -> DeadlineExceededError:
    """Return the error of a request that was never sent."""
    return DeadlineExceededError(
        f"the request was not sent within {step.timeout:.3g} s, since as many as max_in_flight= allows were "
        "in flight all the time: raise it, or the timeout"
    )


def waited() -> DeadlineExceededError:
    """Return the error of a wait for what another asked for."""
    return DeadlineExceededError("no answer about the model within the timeout")


def again(error: BaseException) -> ServingError:
    """Return the error of the first for another: an exception is raised once."""
    if not isinstance(error, ServingError):
        raise error
    return with_code(error.code, str(error))
