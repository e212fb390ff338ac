"""One HTTP/1.1 connection: requests parsed by httptools as their bytes come, answered in their order.

One request at a time is answered. A client that has sent its last request and shuts its side down still gets
the answer; an `Upgrade` that is offered is declined by answering in HTTP/1.1, as RFC 9110 (7.8) allows.
"""

import asyncio
import email.utils
import http
import logging
import time
from collections import deque
from typing import Protocol, cast

import httptools

from keras_bn_serving.local_server.rest import Request, Response, page

_MAX_HEAD_BYTES = 8 << 20  # TF Serving has no limit; no client sends as much
_MAX_IGNORED_BYTES = 8 << 20
_MAX_WAITING = 16  # requests read ahead, after which no more is read
_LINGER_SECONDS = 2  # in which a client that is refused amid its request may read why
_METHODS = {"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"}  # TF Serving knows no other
_REASONS = {status.value: status.phrase for status in http.HTTPStatus}
_log = logging.getLogger(__name__)


class Server(Protocol):
    """The part of the server that a connection uses."""

    loop: asyncio.AbstractEventLoop
    connections: "set[Connection]"
    max_body: int
    stopping: bool

    def answer(self, request: Request) -> Response:
        """The response to a request; may block."""

    def submit(self, connection: "Connection", request: Request) -> None:
        """Have a worker answer, and the loop call `connection.done` with the response."""


class Connection(asyncio.Protocol):
    """The protocol of one connection to `server`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._waiting: deque[Request | Response] = deque()
        self._answering: Request | None = None
        self._keep_alive = True  # whether another request may follow the last one that was read
        self._receiving = False  # whether a request has begun and not ended
        self._writable = True
        self._idle_since = time.monotonic()
        self._head_bytes = 0
        self._ignored_bytes = 0
        self._parser = httptools.HttpRequestParser(self)

    def idle_seconds(self) -> float:
        """For how long there has been nothing to receive or to answer; 0 if there is."""
        busy = self._receiving or self._waiting or self._answering
        return 0 if busy else max(time.monotonic() - self._idle_since, 1e-9)

    def close(self) -> None:
        """Close the connection once what was written has been sent."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection now."""
        self._transport.abort()

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._server.connections.discard(self)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if not self._keep_alive:  # what a client sends after its last request, or after it was refused
            self._ignored_bytes += len(data)
            if self._ignored_bytes > _MAX_IGNORED_BYTES:
                self._transport.abort()
        while data and self._keep_alive:
            # The parser keeps the head of a request and the trailer of a body in memory, however long.
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                return self._refuse(400, "Bad Request")
            rest = b""
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._parser.get_method() == b"CONNECT":
                    return self._refuse(501, "Not Implemented")
                # The parser takes what follows this head for another protocol, the body too.
                rest = self._head_without_upgrade() + data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserInvalidMethodError:
                self._refuse(501, "Not Implemented")
            except httptools.HttpParserError:
                self._refuse(400, "Bad Request")
            data = rest

    def _head_without_upgrade(self) -> bytes:
        lines = [f"{name}: {value}\r\n" for name, value in self._headers.items() if name != "upgrade"]
        head = b"%b %b HTTP/1.1\r\n" % (self._parser.get_method(), self._target)
        return b"%b%b\r\n" % (head, "".join(lines).encode("latin-1"))

    def eof_received(self) -> bool:  # noqa: D102
        self._keep_alive = False
        return self._answering is not None or bool(self._waiting)

    def pause_writing(self) -> None:  # noqa: D102
        self._writable = False

    def resume_writing(self) -> None:  # noqa: D102
        self._writable = True
        self._next()

    # Called by the parser

    def on_message_begin(self) -> None:  # noqa: D102
        self._receiving = True
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:  # noqa: D102
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:  # noqa: D102
        self._head_bytes = 0
        if self._parser.should_upgrade():
            return  # it is parsed anew
        if self._parser.get_method().decode() not in _METHODS:
            self._refuse(501, "Not Implemented")
        elif self._headers.get("expect", "").lower() == "100-continue" and self._keep_alive:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:  # noqa: D102
        self._head_bytes = 0
        self._body_bytes += len(body)
        if self._body_bytes > self._server.max_body:
            self._refuse(413, "Request Entity Too Large")
        elif self._keep_alive:
            self._body.append(body)

    def on_message_complete(self) -> None:  # noqa: D102
        if self._parser.should_upgrade():
            return
        self._receiving = False
        if not self._keep_alive:
            return
        target = self._target.decode("latin-1")
        if not target.startswith("/"):  # http://host/path
            target = "/" + target.partition("://")[2].partition("/")[2]
        self._keep_alive = self._parser.should_keep_alive()
        old = self._parser.get_http_version() == "1.0"
        method, body = self._parser.get_method().decode(), b"".join(self._body)
        self._body = []
        self._waiting.append(Request(method, target, self._headers, body, old))
        if len(self._waiting) > _MAX_WAITING:
            self._transport.pause_reading()
        self._next()

    # Answering

    def _refuse(self, status: int, title: str) -> None:
        """Answer, after the requests before it, one that cannot be understood, and listen to no more."""
        if self._keep_alive:
            self._keep_alive = self._receiving = False
            self._waiting.append(page(status, title))
            self._next()

    def _next(self) -> None:
        """Go on with the request whose turn it is."""
        if self._answering is not None or not self._writable or not self._waiting:
            return
        first = self._waiting.popleft()
        if isinstance(first, Request):
            self._answering = first
            self._server.submit(self, first)
        elif not self._transport.is_closing():
            self._transport.write(_head(first, "close") + first.body)
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._server.loop.call_later(_LINGER_SECONDS, self._transport.close)

    def done(self, request: Request, response: Response) -> None:
        """Send the response to the request that was being answered, and go on with the next."""
        self._answering = None
        self._idle_since = time.monotonic()
        if self._transport.is_closing():
            return
        last = not self._keep_alive and not self._waiting
        close = response.close or last or self._server.stopping
        body = b"" if request.method == "HEAD" else response.body
        connection = "close" if close else "keep-alive" if request.old else ""
        self._transport.write(_head(response, connection) + body)
        if close:
            self._keep_alive = False
            self._waiting.clear()
            self._transport.close()
        else:
            if len(self._waiting) == _MAX_WAITING:
                self._transport.resume_reading()
            self._next()


def _head(response: Response, connection: str) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        f"Date: {_date()}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
    ]
    if connection:
        lines.append(f"Connection: {connection}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


_now = (0, "")


def _date() -> str:
    global _now
    second = int(time.time())
    if second != _now[0]:
        _now = second, email.utils.formatdate(second, usegmt=True)
    return _now[1]
