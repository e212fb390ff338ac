"""gRPC over one channel, with threads and with asyncio."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import grpc

from keras_bn_serving.client import grpc_forks
from keras_bn_serving.client.endpoint import Endpoint
from keras_bn_serving.client.exchange import Codec, Exchange
from keras_bn_serving.client.grpc_codec import GrpcCodec
from keras_bn_serving.client.transport import closed
from keras_bn_serving.wire.errors import (
    InvalidArgumentError,
    ServingError,
    UnavailableError,
    with_code,
)

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
# In a process that was forked after gRPC had been used, the first connections fail with this text before
# anything is sent, and the next succeed. (gRPC's own support of forks, GRPC_ENABLE_FORK_SUPPORT, hangs in the
# child where another thread was in a call: measured with grpcio 1.85.3.)
_FORKED = "file descriptor generation"
_FORKED_ATTEMPTS = 5


class _GrpcTransport:
    def __init__(self, endpoint: Endpoint) -> None:
        self.codec: Codec = GrpcCodec()
        self._metadata = tuple((name.lower(), value.strip()) for name, value in endpoint.headers.items())
        self._channel = _open(endpoint)
        self._calls: dict[str, Any] = {}

    def close(self) -> None:
        """See Transport."""
        self._channel.close()

    def _call(self, path: str) -> Any:
        if path not in self._calls:
            self._calls[path] = self._channel.unary_unary(path)
        return self._calls[path]


class GrpcTransport(_GrpcTransport):
    """Transport over a grpc.Channel, which is thread-safe."""

    def send(self, exchange: Exchange) -> bytes:
        """See Transport."""
        call, deadline = self._call(exchange.path), time.monotonic() + exchange.timeout
        for attempt in range(_FORKED_ATTEMPTS):
            left = max(0.0, deadline - time.monotonic())
            gate = grpc_forks.gate
            gate.enter()
            try:
                return call(exchange.body, timeout=left, metadata=self._metadata)
            except (grpc.RpcError, ValueError) as failure:
                error = _error(failure)
                if _FORKED not in str(error) or attempt == _FORKED_ATTEMPTS - 1:
                    raise error from failure
            finally:
                gate.leave()
        raise AssertionError


class AsyncGrpcTransport(_GrpcTransport):
    """AsyncTransport over a grpc.Channel, whose answers are handed to the event loop.

    grpc.aio is not used: it crashes in a process that was forked, and belongs to one event loop.
    """

    async def send(self, exchange: Exchange) -> bytes:
        """See AsyncTransport."""
        deadline = time.monotonic() + exchange.timeout
        for attempt in range(_FORKED_ATTEMPTS):
            try:
                return await self._send_once(exchange, max(0.0, deadline - time.monotonic()))
            except UnavailableError as error:
                if _FORKED not in str(error) or attempt == _FORKED_ATTEMPTS - 1:
                    raise
        raise AssertionError

    async def _send_once(self, exchange: Exchange, left: float) -> bytes:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not done.done():
                done.set_result(None)

        def hand_over(_: Any) -> None:
            gate.leave()
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits
                loop.call_soon_threadsafe(wake)

        gate = grpc_forks.gate
        gate.enter()
        try:
            call = self._call(exchange.path).future(exchange.body, timeout=left, metadata=self._metadata)
        except ValueError as failure:
            gate.leave()
            raise _error(failure) from failure
        call.add_done_callback(hand_over)
        try:
            await done
        except asyncio.CancelledError:
            call.cancel()
            raise
        try:
            return call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as failure:
            raise _error(failure) from failure


def _open(endpoint: Endpoint) -> grpc.Channel:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    target = (
        f"unix:{endpoint.path}" if endpoint.scheme == "unix" else f"dns:///{host}:{endpoint.port or 8500}"
    )
    options = [*_OPTIONS, ("grpc.enable_http_proxy", 0)] if endpoint.is_loopback else _OPTIONS
    compression = grpc.Compression.Gzip if endpoint.compress else None
    open_channel: Callable[..., grpc.Channel] = grpc.insecure_channel
    if endpoint.scheme == "grpcs":
        open_channel = functools.partial(grpc.secure_channel, credentials=_credentials(endpoint))
    return open_channel(target, options=options, compression=compression)


def _credentials(endpoint: Endpoint) -> grpc.ChannelCredentials:
    if endpoint.cert and not endpoint.key:
        raise InvalidArgumentError(f"cert={str(endpoint.cert)!r} needs its key: pass key= as well")
    try:
        ca, key, cert = (
            path.read_bytes() if path else None for path in (endpoint.ca, endpoint.key, endpoint.cert)
        )
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"the TLS files cannot be read: {error}") from error
    return grpc.ssl_channel_credentials(ca, key, cert)


def _error(error: Any) -> ServingError:
    if isinstance(error, ValueError):  # what a closed channel raises
        return closed()
    if isinstance(error, grpc.FutureCancelledError):
        return with_code("CANCELLED", "the call was cancelled: the client was closed")
    name = error.code().name
    return with_code(name, error.details() or f"the server answered {name} with no text")
