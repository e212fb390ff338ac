"""`Client`: one interface over REST and gRPC, NumPy in and out."""

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from keras_bn_serving.client.carrier import Carrier
from keras_bn_serving.client.connect import connect
from keras_bn_serving.client.exchange import Configuration, Operation
from keras_bn_serving.client.metadata import ModelMetadata, VersionStatus
from keras_bn_serving.client.operations import Operations
from keras_bn_serving.client.settings import Settings

T = TypeVar("T")
Examples = Sequence[Mapping[str, Any]] | Mapping[str, Any]


class Client(Settings):
    """A connection to a model server that speaks TF Serving's protocol.

    Threads may share a client. A forked process opens its own connections, and so does a copy by `copy` or
    `pickle`, which copies only the settings.

    Args:
        address: `http://host:8501` (REST) or `grpc://host:8500`, with TLS `https://` or `grpcs://`, or
            `unix:/path` for gRPC over a socket file. TF Serving itself has no TLS for REST, so `https://`
            needs a proxy in front of it.
        model: Name of the model on the server. A call can name another.
        timeout: Time limit of a whole call in seconds, including metadata and retries. A call can set
            another.
        retries: Number of times that a call is repeated, with growing pauses, if the server is UNAVAILABLE
            (connection refused) or CANCELLED it (a gRPC server that stops). A call is not repeated after a
            timeout, and `reload` never is. Requests to an overloaded server (RESOURCE_EXHAUSTED, HTTP 429, a
            full queue, or 503 with Retry-After) are repeated until the timeout. With 0, no call is repeated,
            for a model whose predictions change its state.
        max_in_flight: Largest number of concurrent requests of this client. Further calls wait for their
            turn, within their timeout. tensorflow_model_server handles `grpc_max_threads` gRPC requests at
            once, 4 for each processor by default, and refuses further ones.
        headers: Headers of every call (metadata for gRPC), such as Authorization. Names and values are ASCII.
        compress: If True, compress requests with gzip, which is worthwhile only on slow networks. REST bodies
            below 1 KiB and above 100 MiB are not compressed, since the server does not inflate larger ones.
            The server never compresses its answers.
        check_shapes: If True, refuse inputs whose shape differs from the signature. The server does not
            compare shapes, so use False for a model that accepts more shapes than its signature.
        ca, cert, key: PEM files of the authorities to trust instead of the system's, and of the client's own
            certificate and key.
        transport: Object that carries the requests instead of the network, as `FakeClient` uses for
            tests; see `keras_bn_serving.client.transport.Transport`.

    The `http://` proxies of the environment are used, but never for an address on this machine.

    After `close`, every method raises `FailedPreconditionError`.

    On an error, every method raises the `ServingError` subclass of the status code, with the message of the
    server. Inputs are checked against the signature before they are sent.

    >>> from keras_bn_serving.client import Client
    >>> client = Client("http://localhost:8501", model="digits")
    >>> client.predict([[0.0, 0.5]])  # doctest: +SKIP
    array([[0.1, 0.9]], dtype=float32)
    """

    def _open(self) -> None:
        self._carrier = self._make_carrier()
        self._of_other_processes: list[Carrier] = []
        codec = self._carrier.transport.codec
        self._operations = Operations(codec, self._retries, self._check_shapes)

    def _make_carrier(self) -> Carrier:
        transport: Any = self._injected or connect(self._endpoint)
        return Carrier(transport, self._max_in_flight)

    def predict(
        self,
        x: Any,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        outputs: str | Sequence[str] | None = None,
        timeout: float | None = None,
        model: str | None = None,
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Return the model's outputs for `x`.

        Args:
            x: Value of the signature's input, including the batch axis, or a dict of values by name for
                several inputs. Arrays and nested lists are cast to the input's dtype if that keeps the kind
                of number and the range (uint8 to float32, int to uint8 if it fits, but never float to int). A
                string input takes str, bytes and `pathlib.Path`, which stands for the contents of the file:
                `[pathlib.Path("cat.jpg")]`.
            signature: Name of the signature. If None, `serving_default`.
            version, label: Version of the model, by number or by label. If both are None, the newest.
            outputs: Name of one output, or a list of names. If None, all. gRPC transfers only these.
            timeout, model: Time limit and model of this call, instead of the client's.

        Returns:
            The array of the only output, or of the output named by a plain str. Otherwise a dict of arrays by
            name. The dtypes are those of the signature. Strings are bytes in an object array.

        Raises:
            InvalidArgumentError: If `x` or a name does not fit the signature, which the message describes.
                Nothing was sent.
            ServingError: The subclass of the status code of the server's answer.
        """
        target = self._target(model, version, label)
        return self._run(self._operations.predict(target, x, signature, outputs, self._seconds(timeout)))

    def classify(
        self,
        examples: Examples,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        context: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        model: str | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Return (label, score) pairs for each example: a dict of features by name, or a list of such dicts.

        A feature is an int, float, bool, str, bytes or Path, or a list of values of one of these types. 2
        makes an int64 feature and 2.0 a float feature. `context` holds features shared by all examples. The
        features of an example take precedence.
        """
        target = self._target(model, version, label)
        return self._run(
            self._operations.examples(
                "classify", target, examples, signature, context, self._seconds(timeout)
            )
        )

    def regress(
        self,
        examples: Examples,
        signature: str | None = None,
        version: int | None = None,
        label: str | None = None,
        context: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        model: str | None = None,
    ) -> np.ndarray:
        """Return one float32 for each example. The arguments are those of `classify`."""
        target = self._target(model, version, label)
        return self._run(
            self._operations.examples("regress", target, examples, signature, context, self._seconds(timeout))
        )

    def status(
        self, model: str | None = None, version: int | None = None, timeout: float | None = None
    ) -> list[VersionStatus]:
        """Return the state of each version that the server knows, newest first, or of one version."""
        return self._run(self._operations.status(self._target(model, version), self._seconds(timeout)))

    def metadata(
        self,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
    ) -> ModelMetadata:
        """Return the signatures of a version, always from the server."""
        return self._run(
            self._operations.metadata(self._target(model, version, label), self._seconds(timeout))
        )

    def reload(self, config: Configuration, timeout: float | None = None) -> None:
        """Replace the server's list of models (gRPC only), and wait until the new ones are loaded.

        `config` is the path of a models.config file, a dict like `{"model_config_list": {"config":
        [{"name": ..., "base_path": ..., "model_platform": "tensorflow"}]}}`, or a `ModelServerConfig`
        message. It replaces the whole list, so a model that is left out is unloaded. The server keeps waiting
        for a new model that has no version yet. The timeout ends the call, but not the reload.
        """
        return self._run(self._operations.reload(config, self._seconds(timeout)))

    def wait_until_ready(
        self, timeout: float = 60.0, model: str | None = None, version: int | None = None
    ) -> int:
        """Wait for an AVAILABLE version (or `version`) and return its number. The server may still be down.

        Raises:
            DeadlineExceededError: If there is none within `timeout` seconds. The message has the last state.
            FailedPreconditionError: If the server has given up loading every version, with its reason.
        """
        return self._run(
            self._operations.wait_until_ready(self._target(model, version), self._seconds(timeout))
        )

    def close(self) -> None:
        """Close the connections. Calls in flight fail."""
        self._closed = True
        if self._carrier.process == os.getpid():
            self._carrier.transport.close()

    def __enter__(self) -> "Client":
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, operation: Operation[T]) -> T:
        self._check_open()
        if self._carrier.process != os.getpid():
            # Kept, so that nothing closes here what the other process uses.
            self._of_other_processes.append(self._carrier)
            self._carrier = self._make_carrier()
        return self._carrier.run(operation)
