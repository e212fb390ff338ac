"""A client with no server, for the tests of code that takes a `Client`.

Everything except the network is the same as in the client: inputs are checked against the signature and cast,
outputs are filtered and unwrapped, and unknown names are refused. The answers of a model come from a Python
function.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_bn_serving.client.async_client import AsyncClient
from keras_bn_serving.client.client import Client
from keras_bn_serving.client.exchange import Codec, Configuration, Exchange, Features, Target
from keras_bn_serving.client.metadata import ModelMetadata, Signature, VersionStatus
from keras_bn_serving.wire.dtypes import numpy_dtype
from keras_bn_serving.wire.errors import NotFoundError, UnimplementedError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class FakeModel:
    """A model of one version: `serving_default`, and the function from inputs to outputs by name.

    The function may raise a `ServingError`, as a server would answer one.
    """

    signature: Signature
    call: Callable[[Arrays], Arrays]
    version: int = 1


class FakeClient(Client):
    """A `Client` whose answers come from functions.

    >>> from keras_bn_serving.client import Signature, TensorSpec
    >>> from keras_bn_serving.client.testing import FakeClient, FakeModel
    >>> vector = TensorSpec("DT_FLOAT", (None,))
    >>> signature = Signature({"x": vector}, {"y": vector})
    >>> double = FakeModel(signature, lambda inputs: {"y": 2 * inputs["x"]})
    >>> FakeClient({"double": double}, model="double").predict([1, 2])
    array([2., 4.], dtype=float32)
    """

    def __init__(
        self, models: Mapping[str, FakeModel], model: str = "default", timeout: float = 10.0
    ) -> None:
        super().__init__("http://fake", model, timeout, transport=_FakeTransport(models))


class AsyncFakeClient(AsyncClient):
    """An `AsyncClient` whose answers come from functions."""

    def __init__(
        self, models: Mapping[str, FakeModel], model: str = "default", timeout: float = 10.0
    ) -> None:
        super().__init__("http://fake", model, timeout, transport=_AsyncFakeTransport(models))


class _FakeTransport:
    def __init__(self, models: Mapping[str, FakeModel]) -> None:
        self.codec: Codec = _FakeCodec(models)

    def send(self, exchange: Exchange) -> bytes:
        return b""

    def close(self) -> None:
        pass


class _AsyncFakeTransport(_FakeTransport):
    async def send(self, exchange: Exchange) -> bytes:  # type: ignore[override]
        return b""


class _Answer(Exchange):
    """An exchange whose errors are those of the user's function, and not the server's."""

    def result(self, body: bytes) -> Any:
        return self.read(body)


class _FakeCodec:
    """Exchanges that need no answer: reading it calls the function."""

    def __init__(self, models: Mapping[str, FakeModel]) -> None:
        self._models = models

    def predict(
        self,
        target: Target,
        name: str | None,
        signature: Signature,
        inputs: dict[str, np.ndarray],
        outputs: Sequence[str],
    ) -> Exchange:
        def read(_: bytes) -> dict[str, np.ndarray]:
            answer = self._find(target).call(inputs)
            return {
                key: np.asarray(answer[key], numpy_dtype(spec.dtype))
                for key, spec in signature.outputs.items()
                if not outputs or key in outputs
            }

        return _Answer("fake", b"", read)

    def examples(
        self,
        method: str,
        target: Target,
        name: str | None,
        examples: Sequence[Features],
        context: Features | None,
    ) -> Exchange:
        raise UnimplementedError(f"the fake client does not {method}")

    def status(self, target: Target) -> Exchange:
        return Exchange("fake", None, lambda _: [VersionStatus(self._find(target).version, "AVAILABLE")])

    def metadata(self, target: Target) -> Exchange:
        def read(_: bytes) -> ModelMetadata:
            model = self._find(target)
            return ModelMetadata(target.model, model.version, {"serving_default": model.signature})

        return Exchange("fake", None, read)

    def reload(self, config: Configuration) -> Exchange:
        raise UnimplementedError("the fake client does not reload")

    def _find(self, target: Target) -> FakeModel:
        model = self._models.get(target.model)
        if model is None or target.version not in (None, model.version):
            raise NotFoundError(
                f"Servable not found for request: {target.model} {target.version or ''}".rstrip()
            )
        return model
