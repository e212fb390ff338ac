"""Executes the steps of operations in the tasks of an event loop."""

import asyncio
import time
from collections.abc import Hashable
from typing import Any, TypeVar

from keras_bn_serving.client.carrier import again, no_slot, remaining, waited
from keras_bn_serving.client.exchange import Exchange, Operation, Pause, Shared
from keras_bn_serving.client.transport import AsyncTransport
from keras_bn_serving.wire.errors import DeadlineExceededError, ServingError

T = TypeVar("T")


class AsyncCarrier:
    """Carries operations out in the tasks of an event loop."""

    def __init__(self, transport: AsyncTransport, max_in_flight: int) -> None:
        self.transport = transport
        self._slots = asyncio.Semaphore(max_in_flight)
        self._shared: dict[Hashable, asyncio.Future[Any]] = {}

    async def run(self, operation: Operation[T]) -> T:
        """Return the result of an operation, or raise its error."""
        try:
            step = next(operation)
            while True:
                try:
                    result = await self._do(step)
                except ServingError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(result)
        except StopIteration as end:
            return end.value

    async def _do(self, step: Exchange | Pause | Shared) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Shared):
            return await self._share(step)
        started = time.monotonic()
        try:
            # Where there is a slot, this does not wait, and needs no timer.
            acquired = self._slots.acquire()
            await (asyncio.wait_for(acquired, step.timeout) if self._slots.locked() else acquired)
        except asyncio.TimeoutError as error:  # not the built-in one in Python 3.10
            raise no_slot(step) from error
        try:
            return step.result(await self.transport.send(remaining(step, started)))
        finally:
            self._slots.release()

    async def _share(self, step: Shared) -> Any:
        while True:
            first = self._shared.get(step.key)
            if first is None:
                mine = self._shared[step.key] = asyncio.get_running_loop().create_future()
                try:
                    mine.set_result(await self.run(step.operation()))
                except ServingError as error:
                    mine.set_exception(error)
                except BaseException:
                    mine.cancel()
                    raise
                finally:
                    del self._shared[step.key]
                return mine.result()
            await asyncio.wait([first], timeout=max(0.0, step.deadline - time.monotonic()))
            if not first.done():
                raise waited()
            if first.cancelled() or isinstance(first.exception(), DeadlineExceededError):
                continue  # the first had less time, or was interrupted
            if (failure := first.exception()) is not None:
                raise again(failure) from failure
            return first.result()
