"""HTTP/1.1 without sockets: the bytes of a request, the meaning of an answer, the words of a failure."""

import base64
import datetime
import email.utils
import gzip
import json
import socket
import ssl
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import h11

from keras_bn_serving.client.endpoint import Endpoint
from keras_bn_serving.client.exchange import Exchange
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
_MAX_HEAD_BYTES = 1 << 17
_PORTS = {"http": 80, "https": 443}

# The errors of a connection; ssl.SSLError, socket.gaierror and TimeoutError are OSErrors.
FAILURES = (OSError, h11.RemoteProtocolError)


class Messages:
    """The messages on one connection: one request, then its answer, and again."""

    def __init__(self) -> None:
        self._state = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._chunks: list[bytes] = []
        self._head: h11.Response | None = None

    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> list[bytes]:
        """Return the pieces of a request."""
        self._chunks, self._head = [], None
        lines = list(headers.items())
        if body is not None:
            lines.append(("Content-Length", str(len(body))))
        pieces = [self._state.send(h11.Request(method=method, target=target, headers=lines)) or b""]
        if body is not None:
            pieces += self._state.send_with_data_passthrough(h11.Data(data=body)) or []
        return [*pieces, self._state.send(h11.EndOfMessage()) or b""]

    def receive(self, data: bytes) -> bool:
        """Take what has arrived, nothing if the server has closed; return whether the answer is complete."""
        if not data and self._head is None and not self._state.trailing_data[0]:
            raise ConnectionError("the server closed the connection without an answer")
        self._state.receive_data(data)
        while True:
            event = self._state.next_event()
            if event is h11.NEED_DATA:
                return False
            if isinstance(event, h11.EndOfMessage) or event is h11.PAUSED:  # paused: a tunnel stands
                return True
            if isinstance(event, h11.Response):
                self._head = event
            elif isinstance(event, h11.Data):
                self._chunks.append(bytes(event.data))

    def finish(self) -> bool:
        """Make ready for the next request; return False if the connection takes no more."""
        if self._state.trailing_data[0] or self._state.states != {
            h11.CLIENT: h11.DONE,
            h11.SERVER: h11.DONE,
        }:
            return False
        self._state.start_next_cycle()
        return True

    def check_tunnel(self, way: "Route") -> None:
        """Raise ConnectionError unless the answer to CONNECT says that a tunnel stands."""
        status = self._head.status_code if self._head else 0
        if status // 100 != 2:
            raise ConnectionError(f"the proxy {way.host}:{way.port} answered HTTP {status} to CONNECT")

    def body(self) -> bytes:
        """Return the body of a good answer, or raise what it says."""
        body, head = b"".join(self._chunks), self._head
        if head is None or head.status_code == 200:
            return body
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        raise refusal(head.status_code, headers, body)


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> ServingError:
    """Return the error of an answer other than 200."""
    try:
        message = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = body.decode("utf-8", "replace")[:500]
    if not message:
        message = f"the server answered HTTP {status} with no text"
    if status == 413:
        message = f"{message} (HTTP 413: the request is too large)"
    if 300 <= status < 400 and "location" in headers:
        message = f"the server answered HTTP {status} and points to {headers['location']}: use that address"
    error = with_code(HTTP_CODES.get(status, "UNKNOWN"), str(message))
    if status in (429, 503):
        error.retry_after = _seconds(headers.get("retry-after", ""))
    return error


def _seconds(text: str) -> float | None:
    """The value of Retry-After: seconds, or a date."""
    if text.isdecimal():
        return float(text)
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.timezone.utc)
    return max(0.0, date.timestamp() - time.time())


@dataclass(frozen=True)
class Route:
    """How an endpoint is reached: where to connect, what to ask there for a tunnel, and TLS.

    `prefix` comes before the path of a request: a proxy without a tunnel wants the whole URL. `tunnel` is the
    target and the headers of CONNECT.
    """

    host: str
    port: int
    server_name: str
    headers: Mapping[str, str]
    prefix: str = ""
    tunnel: tuple[str, Mapping[str, str]] | None = None
    tls: ssl.SSLContext | None = None


def route(endpoint: Endpoint) -> Route:
    """Return the route to an endpoint, over the environment's proxy where there is one for it."""
    port = endpoint.port or _PORTS[endpoint.scheme]
    given = {name.lower() for name in endpoint.headers}
    defaults = {
        "Host": endpoint.authority,
        "Accept": "*/*",
        "User-Agent": "keras-bn-serving",
        "Content-Type": "application/json",
    }
    headers = {name: value for name, value in defaults.items() if name.lower() not in given}
    headers |= {name: value.strip() for name, value in endpoint.headers.items()}
    tls = _ssl_context(endpoint) if endpoint.scheme == "https" else None
    proxy = _proxy(endpoint)
    if proxy is None:
        return Route(endpoint.host, port, endpoint.host, headers, tls=tls)
    host, proxy_port, authorization = proxy
    if tls is None:
        headers |= authorization
        return Route(host, proxy_port, endpoint.host, headers, prefix=f"http://{endpoint.authority}")
    target = f"[{endpoint.host}]:{port}" if ":" in endpoint.host else f"{endpoint.host}:{port}"
    tunnel = (target, {"Host": target, **authorization})
    return Route(host, proxy_port, endpoint.host, headers, tunnel=tunnel, tls=tls)


def _proxy(endpoint: Endpoint) -> tuple[str, int, dict[str, str]] | None:
    """Host, port and headers of the environment's proxy for an endpoint."""
    url = urllib.request.getproxies().get(endpoint.scheme)
    if not url or endpoint.is_loopback or urllib.request.proxy_bypass(endpoint.host):
        return None
    advice = f"correct the variable {endpoint.scheme}_proxy, or put {endpoint.host} into no_proxy"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or 80
    except ValueError as error:
        raise InvalidArgumentError(f"the proxy {url!r} is not a URL ({error}): {advice}") from error
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidArgumentError(
            f"the proxy {url!r} cannot be used, only http://HOST:PORT (neither SOCKS nor TLS): {advice}"
        )
    headers = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"
    return parts.hostname, port, headers


def _ssl_context(endpoint: Endpoint) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=endpoint.ca)
        if endpoint.cert:
            context.load_cert_chain(endpoint.cert, endpoint.key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidArgumentError(f"the TLS files cannot be used: {error}") from error
    return context


def encode(messages: Messages, way: Route, exchange: Exchange, compress: bool) -> list[bytes]:
    """Return the pieces of the HTTP request of an exchange."""
    headers, body = dict(way.headers), exchange.body
    if compress and body is not None and len(body) in _COMPRESSED_BYTES:
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, _COMPRESSION_LEVEL)
    return messages.request("GET" if body is None else "POST", way.prefix + exchange.path, headers, body)


def failure(endpoint: Endpoint, exchange: Exchange, error: Exception) -> ServingError:
    """Return the ServingError of a connection that failed."""
    name = f"{endpoint.scheme}://{endpoint.authority}"
    if isinstance(error, TimeoutError | socket.timeout):
        return DeadlineExceededError(f"no answer from {name} within {exchange.timeout:.3g} s")
    hint = " (is this the REST port?)" if isinstance(error, h11.RemoteProtocolError) else ""
    return UnavailableError(f"no answer from {name}: {error or type(error).__name__}{hint}")
