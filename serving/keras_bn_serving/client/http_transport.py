"""REST over HTTP/1.1 connections that are kept, with threads."""

import concurrent.futures
import contextlib
import socket
import threading
import time
from typing import Any

from keras_bn_serving.client.endpoint import Endpoint
from keras_bn_serving.client.exchange import Codec, Exchange
from keras_bn_serving.client.http_messages import FAILURES, Messages, Route, encode, failure, route
from keras_bn_serving.client.rest import RestCodec
from keras_bn_serving.client.transport import closed

_READ_BYTES = 1 << 18


class HttpTransport:
    """Transport over a stack of idle connections: the one that was used last is used next."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.codec: Codec = RestCodec(endpoint.path)
        self._endpoint = endpoint
        self._route = route(endpoint)
        # Lists and sets alone are changed by threads, each in one step.
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._closed = False

    def send(self, exchange: Exchange) -> bytes:
        """See Transport."""
        connection = self._take()
        self._busy.add(connection)
        kept = False
        try:
            deadline = time.monotonic() + exchange.timeout
            connection.open(deadline)
            if self._closed:  # perhaps while this connection was opened
                raise closed()
            connection.exchange(exchange, self._endpoint.compress, deadline)
            kept = connection.messages.finish()
            return connection.messages.body()
        except FAILURES as error:
            raise failure(self._endpoint, exchange, error) from error
        finally:
            self._busy.discard(connection)
            if kept and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """See Transport."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        for connection in list(self._busy):
            connection.close()

    def _take(self) -> "_Connection":
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if connection.is_quiet():
                    return connection
                connection.close()
        return _Connection(self._route)


class _Connection:
    def __init__(self, way: Route) -> None:
        self.messages = Messages()
        self._route = way
        self._socket: socket.socket | None = None

    def open(self, deadline: float) -> None:
        """Connect, unless it has."""
        if self._socket is None:
            self._socket = _open(self._route, deadline)

    def exchange(self, exchange: Exchange, compress: bool, deadline: float) -> None:
        """Send a request and take its answer in."""
        pieces = encode(self.messages, self._route, exchange, compress)
        _ask(self._socket, self.messages, pieces, deadline)  # type: ignore[arg-type]

    def is_quiet(self) -> bool:
        """Whether the server has neither closed the connection nor said anything since the last answer."""
        if self._socket is None:
            return False
        self._socket.setblocking(False)
        try:
            socket.socket.recv(self._socket, 1, socket.MSG_PEEK)  # below TLS, where there is any
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close the socket. A read in another thread then ends."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()


def _open(way: Route, deadline: float) -> socket.socket:
    connected = _connect(way.host, way.port, deadline)
    try:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if way.tunnel:
            target, headers = way.tunnel
            messages = Messages()
            _ask(connected, messages, messages.request("CONNECT", target, headers), deadline)
            messages.check_tunnel(way)
        if way.tls:
            connected = way.tls.wrap_socket(
                connected, server_hostname=way.server_name, do_handshake_on_connect=False
            )
            connected.settimeout(_left(deadline))
            connected.do_handshake()
        return connected
    except BaseException:
        connected.close()
        raise


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    problem: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in _addresses(host, port, deadline):
        connected = socket.socket(family, kind, protocol)
        try:
            connected.settimeout(_left(deadline))
            connected.connect(address)
            return connected
        except OSError as error:
            connected.close()
            problem = error
    raise problem


def _addresses(host: str, port: int, deadline: float) -> list[Any]:
    """Look a name up, which nothing can interrupt, in a thread that may be left behind."""
    found: concurrent.futures.Future[list[Any]] = concurrent.futures.Future()

    def look_up() -> None:
        try:
            found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.set_exception(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=look_up, daemon=True).start()
    try:
        return found.result(_left(deadline))
    except concurrent.futures.TimeoutError as error:  # not the built-in one in Python 3.10
        raise TimeoutError(str(error)) from error


def _ask(connected: socket.socket, messages: Messages, pieces: list[bytes], deadline: float) -> None:
    """Send, then read until the answer is complete; every wait ends at the deadline."""
    broken: OSError | None = None
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                connected.settimeout(_left(deadline))
                rest = rest[connected.send(rest) :]
    except ConnectionError as error:  # a server may refuse a body before it has read it, and say why
        broken = error
    while True:
        connected.settimeout(_left(deadline))
        try:
            if messages.receive(connected.recv(_READ_BYTES)):
                return
        except ConnectionError as error:
            raise broken or error from None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
