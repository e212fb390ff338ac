"""`AsyncClient`: the client for asyncio."""

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from keras_bn_serving.client.client import Examples
from keras_bn_serving.client.connect import connect_async
from keras_bn_serving.client.exchange import Configuration, Operation
from keras_bn_serving.client.metadata import ModelMetadata, VersionStatus
from keras_bn_serving.client.operations import Operations
from keras_bn_serving.client.settings import Settings
from keras_bn_serving.client.transport import AsyncTransport

if TYPE_CHECKING:
    import asyncio

    from keras_bn_serving.client.async_carrier import AsyncCarrier

T = TypeVar("T")


class AsyncClient(Settings):
    """`Client` for asyncio, with the same arguments and methods, which are awaited.

    The client may be created before an event loop runs, and used in several loops in turn. Each loop has its
    own connections. Close it with `await client.close()` or `async with`.
    """

    def _open(self) -> None:
        transport: Any = self._injected or connect_async(self._endpoint)
        self._unused: AsyncTransport | None = transport
        self._process = os.getpid()
        self._carriers: dict[asyncio.AbstractEventLoop, AsyncCarrier] = {}
        self._of_other_processes: list[Any] = []
        self._operations = Operations(transport.codec, self._retries, self._check_shapes)

    async def predict(
        self,
        x: Any,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        outputs: str | Sequence[str] | None = None,
        timeout: float | None = None,
        model: str | None = None,
    ) -> np.ndarray | dict[str, np.ndarray]:
        """See `Client.predict`."""
        target = self._target(model, version, label)
        return await self._run(
            self._operations.predict(target, x, signature, outputs, self._seconds(timeout))
        )

    async def classify(
        self,
        examples: Examples,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        context: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        model: str | None = None,
    ) -> list[list[tuple[str, float]]]:
        """See `Client.classify`."""
        target = self._target(model, version, label)
        return await self._run(
            self._operations.examples(
                "classify", target, examples, signature, context, self._seconds(timeout)
            )
        )

    async def regress(
        self,
        examples: Examples,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        context: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        model: str | None = None,
    ) -> np.ndarray:
        """See `Client.regress`."""
        target = self._target(model, version, label)
        return await self._run(
            self._operations.examples("regress", target, examples, signature, context, self._seconds(timeout))
        )

    async def status(
        self, model: str | None = None, version: int | None = None, timeout: float | None = None
    ) -> list[VersionStatus]:
        """See `Client.status`."""
        return await self._run(self._operations.status(self._target(model, version), self._seconds(timeout)))

    async def metadata(
        self,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
    ) -> ModelMetadata:
        """See `Client.metadata`."""
        target = self._target(model, version, label)
        return await self._run(self._operations.metadata(target, self._seconds(timeout)))

    async def reload(self, config: Configuration, timeout: float | None = None) -> None:
        """See `Client.reload`."""
        return await self._run(self._operations.reload(config, self._seconds(timeout)))

    async def wait_until_ready(
        self, timeout: float = 60.0, model: str | None = None, version: int | None = None
    ) -> int:
        """See `Client.wait_until_ready`."""
        return await self._run(
            self._operations.wait_until_ready(self._target(model, version), self._seconds(timeout))
        )

    async def close(self) -> None:
        """Close the connections. Calls in flight fail."""
        self._closed = True
        if self._process != os.getpid():
            return
        if self._unused is not None:
            self._unused.close()
        for loop, carrier in self._carriers.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(carrier.transport.close)
        if self._carriers:
            import asyncio

            await asyncio.sleep(0)  # the loop closes what was asked of it above

    async def __aenter__(self) -> "AsyncClient":
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, operation: Operation[T]) -> T:
        self._check_open()
        return await self._carrier().run(operation)

    def _carrier(self) -> "AsyncCarrier":
        # Whoever awaits has asyncio already, and it is a third of this package's import.
        import asyncio

        from keras_bn_serving.client.async_carrier import AsyncCarrier

        if self._process != os.getpid():
            # Kept, so that nothing closes here what the other process uses.
            self._of_other_processes += [self._unused, self._carriers]
            self._unused, self._carriers, self._process = None, {}, os.getpid()
        loop = asyncio.get_running_loop()
        if loop not in self._carriers:
            for ended in [other for other in self._carriers if other.is_closed()]:
                del self._carriers[ended]
            transport: Any = self._injected or self._unused or connect_async(self._endpoint)
            self._unused = None
            self._carriers[loop] = AsyncCarrier(transport, self._max_in_flight)
        return self._carriers[loop]
