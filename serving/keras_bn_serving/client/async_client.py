"""`AsyncClient`: the client for asyncio."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from keras_bn_serving.client.client import Examples
from keras_bn_serving.client.exchange import Operation, Pause
from keras_bn_serving.client.metadata import ModelMetadata, VersionStatus
from keras_bn_serving.client.settings import Settings
from keras_bn_serving.client.transport import connect_async
from keras_bn_serving.wire.errors import ServingError

T = TypeVar("T")


class AsyncClient(Settings):
    """`Client` for asyncio: the same arguments and methods, to be awaited.

    The connections belong to the event loop of the first call; the client may be made before. Close it with
    `await client.close()` or `async with`.
    """

    _connect = staticmethod(connect_async)

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

    async def reload(self, config: Any, timeout: float | None = None) -> None:
        """See `Client.reload`."""
        return await self._run(self._operations.reload(config, self._seconds(timeout)))

    async def wait_until_ready(
        self, timeout: float = 60.0, model: str | None = None, version: int | None = None
    ) -> int:
        """See `Client.wait_until_ready`."""
        return await self._run(self._operations.wait_until_ready(self._target(model, version), timeout))

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, operation: Operation[T]) -> T:
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

    async def _do(self, step: Any) -> Any:
        if isinstance(step, Pause):
            import asyncio  # a third of this package's import, and whoever awaits has it already

            return await asyncio.sleep(step.seconds)
        return step.result(await self._transport.send(step))
