"""gRPC over one channel, with threads and with asyncio."""

import functools
from collections.abc import Callable
from typing import Any

import grpc

from keras_bn_serving.client.exchange import Exchange
from keras_bn_serving.client.transport import Endpoint
from keras_bn_serving.wire.errors import BY_CODE, InvalidArgumentError, ServingError

_OPTIONS = (
    ("grpc.max_send_message_length", -1),  # the default limit of 4 MiB is less than a batch of images
    ("grpc.max_receive_message_length", -1),
    # A headless Kubernetes service has an address for each server: use them all.
    ("grpc.lb_policy_name", "round_robin"),
    # After a refused connection gRPC fails every call at once until its backoff has passed; the defaults
    # (1 s, growing to 120 s) would outlast a server's start.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class GrpcTransport:
    """Transport over a grpc.Channel, which is thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._metadata = _metadata(endpoint)
        self._channel = _opener(grpc, endpoint)()

    def send(self, exchange: Exchange) -> bytes:
        """See Transport."""
        call = self._channel.unary_unary(exchange.path)
        try:
            return call(exchange.body, timeout=exchange.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _error(error) from error

    def close(self) -> None:
        """See Transport."""
        self._channel.close()


class AsyncGrpcTransport:
    """Transport over a grpc.aio.Channel."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._metadata = _metadata(endpoint)
        # A channel belongs to the event loop it is made in, which is that of the first call.
        self._channel = functools.cache(_opener(grpc.aio, endpoint))

    async def send(self, exchange: Exchange) -> bytes:
        """See AsyncTransport."""
        call = self._channel().unary_unary(exchange.path)
        try:
            return await call(exchange.body, timeout=exchange.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _error(error) from error

    async def close(self) -> None:
        """See AsyncTransport."""
        await self._channel().close()


def _opener(library: Any, endpoint: Endpoint) -> Callable[[], Any]:
    """Return what opens the channel; the files for TLS are read now."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    target = (
        f"unix:{endpoint.path}" if endpoint.scheme == "unix" else f"dns:///{host}:{endpoint.port or 8500}"
    )
    options = [*_OPTIONS, ("grpc.enable_http_proxy", 0)] if endpoint.is_loopback else _OPTIONS
    compression = grpc.Compression.Gzip if endpoint.compress else None
    if endpoint.scheme == "grpcs":
        return functools.partial(
            library.secure_channel, target, _credentials(endpoint), options, compression=compression
        )
    return functools.partial(library.insecure_channel, target, options, compression=compression)


def _credentials(endpoint: Endpoint) -> grpc.ChannelCredentials:
    try:
        ca, key, cert = (
            path.read_bytes() if path else None for path in (endpoint.ca, endpoint.key, endpoint.cert)
        )
    except OSError as error:
        raise InvalidArgumentError(f"the TLS files cannot be read: {error}") from error
    return grpc.ssl_channel_credentials(ca, key, cert)


def _metadata(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in endpoint.headers.items())


def _error(error: Any) -> ServingError:
    return BY_CODE[error.code().name](
        error.details() or f"the server answered {error.code().name} with no text"
    )
