"""REST over pooled HTTP/1.1 connections, with threads and with asyncio."""

import asyncio
import gzip
import json
import ssl
import time
import urllib.request
from typing import Any

import httpcore

from keras_bn_serving.client.exchange import Exchange
from keras_bn_serving.client.transport import Endpoint
from keras_bn_serving.wire.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ServingError,
    UnavailableError,
    with_code,
)
from keras_bn_serving.wire.status import HTTP_CODES

# Shorter bodies gain nothing, longer ones TF Serving refuses to inflate.
_COMPRESSED_BYTES = range(1 << 10, (100 << 20) + 1)
_COMPRESSION_LEVEL = 1  # of digits; level 6 takes five times as long to save another tenth

# httpcore lets some TLS alerts through as ssl.SSLError, which is an OSError.
_FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)


class HttpTransport:
    """Transport over httpcore's thread-safe connection pool."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pool = httpcore.ConnectionPool(**_pool_options(endpoint))

    def send(self, exchange: Exchange) -> bytes:
        """See Transport."""
        deadline = time.monotonic() + exchange.timeout
        try:
            with self._pool.stream(**_request(self._endpoint, exchange)) as response:
                chunks = []
                # The pool's timeouts are for one read each, which a slow drip passes.
                for chunk in response.iter_stream():
                    chunks.append(chunk)
                    if time.monotonic() > deadline:
                        raise _timeout(self._endpoint, exchange)
        except _FAILURES as error:
            raise _transport_error(self._endpoint, exchange, error) from error
        return _body(response.status, b"".join(chunks))

    def close(self) -> None:
        """See Transport."""
        self._pool.close()


class AsyncHttpTransport:
    """Transport over httpcore's asyncio connection pool."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pool = httpcore.AsyncConnectionPool(**_pool_options(endpoint))

    async def send(self, exchange: Exchange) -> bytes:
        """See AsyncTransport."""
        try:
            request = self._pool.request(**_request(self._endpoint, exchange))
            response = await asyncio.wait_for(request, exchange.timeout)
        except asyncio.TimeoutError as error:
            raise _timeout(self._endpoint, exchange) from error
        except _FAILURES as error:
            raise _transport_error(self._endpoint, exchange, error) from error
        return _body(response.status, response.content)

    async def close(self) -> None:
        """See AsyncTransport."""
        await self._pool.aclose()


def _pool_options(endpoint: Endpoint) -> dict[str, Any]:
    options: dict[str, Any] = {"max_connections": None, "max_keepalive_connections": 100}
    if endpoint.scheme == "https":
        options["ssl_context"] = _ssl_context(endpoint)
    proxies = urllib.request.getproxies()
    if (
        not endpoint.is_loopback
        and endpoint.scheme in proxies
        and not urllib.request.proxy_bypass(endpoint.host)
    ):
        options["proxy"] = httpcore.Proxy(proxies[endpoint.scheme])
    return options


def _ssl_context(endpoint: Endpoint) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=endpoint.ca)
        if endpoint.cert:
            context.load_cert_chain(endpoint.cert, endpoint.key)
    except OSError as error:  # ssl.SSLError is one
        raise InvalidArgumentError(f"the TLS files cannot be used: {error}") from error
    return context


def _request(endpoint: Endpoint, exchange: Exchange) -> dict[str, Any]:
    url = httpcore.URL(
        scheme=endpoint.scheme.encode(),
        host=endpoint.host.encode(),
        port=endpoint.port,
        target=exchange.path.encode(),
    )
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), exchange.timeout)
    headers, body = {"Content-Type": "application/json", **endpoint.headers}, exchange.body
    if endpoint.compress and body is not None and len(body) in _COMPRESSED_BYTES:
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, _COMPRESSION_LEVEL)
    return {
        "method": "GET" if exchange.body is None else "POST",
        "url": url,
        "headers": headers,
        "content": body,
        "extensions": {"timeout": timeouts},
    }


def _transport_error(endpoint: Endpoint, exchange: Exchange, error: Exception) -> ServingError:
    if isinstance(error, httpcore.TimeoutException):
        return _timeout(endpoint, exchange)
    is_http = "disconnected" in str(error) or not isinstance(error, httpcore.RemoteProtocolError)
    hint = "" if is_http else " (is this the REST port?)"
    return UnavailableError(f"no answer from {_name(endpoint)}: {error or type(error).__name__}{hint}")


def _timeout(endpoint: Endpoint, exchange: Exchange) -> ServingError:
    return DeadlineExceededError(f"no answer from {_name(endpoint)} within {exchange.timeout:.3g} s")


def _name(endpoint: Endpoint) -> str:
    return f"{endpoint.scheme}://{endpoint.host}" + (f":{endpoint.port}" if endpoint.port else "")


def _body(status: int, body: bytes) -> bytes:
    if status == 200:
        return body
    code = HTTP_CODES.get(status, "UNKNOWN")
    try:
        message = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        message = body.decode("utf-8", "replace")[:500]
    raise with_code(code, message or f"the server answered HTTP {status} with no text")
