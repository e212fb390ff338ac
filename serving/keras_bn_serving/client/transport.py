"""Carrying requests: an address becomes a codec and a connection, and every failure a ServingError."""

import ipaddress
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from keras_bn_serving.client.exchange import Codec, Exchange
from keras_bn_serving.wire.errors import InvalidArgumentError


@dataclass(frozen=True)
class Endpoint:
    """A parsed address, the PEM files for TLS, the headers (gRPC: metadata) and compression of every call."""

    scheme: str
    host: str
    port: int | None
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    compress: bool = False
    ca: pathlib.Path | None = None
    cert: pathlib.Path | None = None
    key: pathlib.Path | None = None

    @property
    def is_rest(self) -> bool:
        """Whether the address speaks HTTP and JSON rather than gRPC."""
        return self.scheme in ("http", "https")

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine, which no proxy can reach."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.scheme == "unix" or self.host == "localhost" or self.host.endswith(".localhost")


class Transport(Protocol):
    """A connection for threads."""

    def send(self, exchange: Exchange) -> bytes:
        """Return the body of the answer, or raise a ServingError."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """A connection for asyncio."""

    async def send(self, exchange: Exchange) -> bytes:
        """Return the body of the answer, or raise a ServingError."""

    async def close(self) -> None:
        """Close the connections."""


def parse_address(address: str, **options: Any) -> Endpoint:
    """Parse `http[s]://host[:port][/prefix]`, `grpc[s]://host[:port]` or `unix:/path` (gRPC)."""
    if address.startswith("unix:"):
        return Endpoint("unix", "", None, address.removeprefix("unix:"), **options)
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise InvalidArgumentError(f"the address {address!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
        raise InvalidArgumentError(
            f"the address {address!r} should be http://HOST:8501 (REST) or grpc://HOST:8500, "
            "with TLS https:// or grpcs://, or unix:/PATH (gRPC)"
        )
    return Endpoint(parts.scheme, parts.hostname, port, parts.path, **options)


def connect(endpoint: Endpoint) -> tuple[Codec, Transport]:
    """Return the codec and the transport of an endpoint; only the libraries it needs are imported."""
    if endpoint.is_rest:
        from keras_bn_serving.client.http_transport import HttpTransport
        from keras_bn_serving.client.rest import RestCodec

        return RestCodec(endpoint.path), HttpTransport(endpoint)
    from keras_bn_serving.client.grpc_codec import GrpcCodec
    from keras_bn_serving.client.grpc_transport import GrpcTransport

    return GrpcCodec(), GrpcTransport(endpoint)


def connect_async(endpoint: Endpoint) -> tuple[Codec, AsyncTransport]:
    """Return the codec and the asyncio transport of an endpoint."""
    if endpoint.is_rest:
        from keras_bn_serving.client.http_transport import AsyncHttpTransport
        from keras_bn_serving.client.rest import RestCodec

        return RestCodec(endpoint.path), AsyncHttpTransport(endpoint)
    from keras_bn_serving.client.grpc_codec import GrpcCodec
    from keras_bn_serving.client.grpc_transport import AsyncGrpcTransport

    return GrpcCodec(), AsyncGrpcTransport(endpoint)
