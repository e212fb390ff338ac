"""`Client`: one interface over REST and gRPC, NumPy in and out."""

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from keras_bn_serving.client.carrier import Carrier
from keras_bn_serving.client.connect import connect
from keras_bn_serving.client.exchange import Operation
from keras_bn_serving.client.metadata import ModelMetadata, VersionStatus
from keras_bn_serving.client.operations import Operations
from keras_bn_serving.client.settings import Settings

T = TypeVar("T")
Examples = Sequence[Mapping[str, Any]] | Mapping[str, Any]


class Client(Settings):
    """A connection to a model server that speaks TF Serving's protocol.

    Threads may share a client. A process that was forked opens connections of its own, and so does a copy, by
    `copy` or `pickle`, which takes the settings alone.

    Args:
        address: `http://host:8501` (REST) or `grpc://host:8500`; with TLS `https://` and `grpcs://`;
            `unix:/path` for gRPC over a socket file. TF Serving itself has no TLS for REST, so `https://`
            is a proxy before it.
        model: the model's name on the server, unless a call names another.
        timeout: seconds for a whole call, metadata and retries included, unless a call names another.
        retries: how often a call is repeated when the server is UNAVAILABLE (connection refused) or
            CANCELLED it (a gRPC server that ends), with growing pauses. Not after a timeout, and never
            `reload`. An overloaded server (RESOURCE_EXHAUSTED, HTTP 429, a full queue, or 503 with
            Retry-After) is asked again until the timeout. Use 0 to repeat no call at all, for a model whose
            predictions change its state.
        max_in_flight: how many requests this client has on the way at once; further calls wait for their
            turn, within their timeout. tensorflow_model_server handles `grpc_max_threads` gRPC requests at
            once, 4 for each processor by default, and refuses those beyond.
        headers: sent with every call (gRPC: as metadata), such as an Authorization. Names and values are
            ASCII.
        compress: send requests gzipped, which pays on slow networks alone. REST leaves bodies below 1 KiB
            and above 100 MiB as they are: the server inflates no more. It never compresses its answers.
        check_shapes: refuse what has another shape than the signature says. The server does not compare
            them and feeds whatever it is sent, so use False for a model whose signature says too much.
        ca, cert, key: PEM files: authorities to trust instead of the system's, and the client's own
            certificate and key.
        transport: an object that carries the requests instead of the network, as `FakeClient` uses for
            tests; see `keras_bn_serving.client.transport.Transport`.

    The environment's proxies are used (`http://` ones), but never for an address on this machine.

    After `close`, every method raises `FailedPreconditionError`.

    Every method raises a `ServingError` of the class of its canonical code, with the server's words. What can
    be checked against the signature is checked before it is sent.

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
            x: what the signature's input takes, batch axis included; a dict of them by name for several
                inputs. Arrays and nested lists are cast to the input's dtype where that keeps the kind of
                number and the range (uint8 to float32, int to uint8 if it fits; never float to int). A
                string input takes str, bytes and `pathlib.Path`, which stands for the file's contents:
                `[pathlib.Path("cat.jpg")]`.
            signature: its name; None for `serving_default`.
            version, label: one version of the model; with neither, the newest.
            outputs: the name of one output, or a list of names; None for all. gRPC then carries only these.
            timeout, model: instead of the client's.

        Returns:
            The array of the only output, or of the one named by a plain str; else a dict of arrays by
            name. Dtypes are the signature's; strings are bytes in an object array.

        Raises:
            InvalidArgumentError: `x` or a name does not fit the signature, which the message describes;
                nothing was sent.
            ServingError: the subclass of the code that the server answered.
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

        A feature is an int, float, bool, str, bytes or Path, or a list of one kind of them; 2 makes an
        int64 feature and 2.0 a float one. `context` holds features shared by all examples; an example's
        own come first.
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
        """Return one float32 for each example; arguments as for `classify`."""
        target = self._target(model, version, label)
        return self._run(
            self._operations.examples("regress", target, examples, signature, context, self._seconds(timeout))
        )

    def status(
        self, model: str | None = None, version: int | None = None, timeout: float | None = None
    ) -> list[VersionStatus]:
        """Return the state of each version the server knows of, newest first, or of one."""
        return self._run(self._operations.status(self._target(model, version), self._seconds(timeout)))

    def metadata(
        self,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
    ) -> ModelMetadata:
        """Return the signatures of a version, asked of the server anew."""
        return self._run(
            self._operations.metadata(self._target(model, version, label), self._seconds(timeout))
        )

    def reload(self, config: Any, timeout: float | None = None) -> None:
        """Replace the server's list of models (gRPC only), and wait until the new ones are loaded.

        `config` is the path of a models.config file, a dict like `{"model_config_list": {"config":
        [{"name": ..., "base_path": ..., "model_platform": "tensorflow"}]}}`, or a `ModelServerConfig`
        message. It replaces the whole list: a model left out is unloaded. The server never gives up on a
        new model that has no version yet; the timeout ends the waiting, not the reload.
        """
        return self._run(self._operations.reload(config, self._seconds(timeout)))

    def wait_until_ready(
        self, timeout: float = 60.0, model: str | None = None, version: int | None = None
    ) -> int:
        """Return the newest AVAILABLE version (or `version`) once there is one; the server may be down yet.

        Raises:
            DeadlineExceededError: not within `timeout` seconds; the message has what was last seen.
            FailedPreconditionError: the server has given up loading every version, with its reason.
        """
        return self._run(
            self._operations.wait_until_ready(self._target(model, version), self._seconds(timeout))
        )

    def close(self) -> None:
        """Close the connections; calls in flight fail."""
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
