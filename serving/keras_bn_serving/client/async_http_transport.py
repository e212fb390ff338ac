"""REST over HTTP/1.1 connections that are kept, with asyncio."""

import asyncio
import time

from keras_bn_serving.client.endpoint import Endpoint
from keras_bn_serving.client.exchange import Codec, Exchange
from keras_bn_serving.client.http_messages import FAILURES, Messages, Route, encode, failure, route
from keras_bn_serving.client.rest import RestCodec
from keras_bn_serving.client.transport import closed


class AsyncHttpTransport:
    """AsyncTransport over a stack of idle connections: the one that was used last is used next."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.codec: Codec = RestCodec(endpoint.path)
        self._endpoint = endpoint
        self._route = route(endpoint)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._closed = False

    async def send(self, exchange: Exchange) -> bytes:
        """See AsyncTransport."""
        deadline = time.monotonic() + exchange.timeout
        connection, kept = None, False
        try:
            connection = self._take() or await _open(self._route, deadline)
            self._busy.add(connection)
            if self._closed:  # perhaps while this connection was opened
                raise closed()
            pieces = encode(connection.messages, self._route, exchange, self._endpoint.compress)
            await connection.ask(pieces, deadline)
            kept = connection.messages.finish()
            return connection.messages.body()
        except (*FAILURES, asyncio.TimeoutError) as error:  # not the built-in one in Python 3.10
            if isinstance(error, asyncio.TimeoutError):
                error = TimeoutError()
            raise failure(self._endpoint, exchange, error) from error
        finally:
            if connection is not None:
                self._busy.discard(connection)
                if kept and not self._closed:
                    self._idle.append(connection)
                else:
                    connection.close()

    def close(self) -> None:
        """See AsyncTransport."""
        self._closed = True
        for connection in [*self._idle, *self._busy]:
            connection.close()
        self._idle.clear()

    def _take(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_quiet:
                return connection
            connection.close()
        return None


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.messages = Messages()
        self.transport: asyncio.Transport | None = None
        self.is_quiet = True  # neither closed nor has it said anything since the last answer
        self._answer: asyncio.Future[None] | None = None

    async def ask(self, pieces: list[bytes], deadline: float) -> None:
        """Send, then wait until the answer is complete or the deadline has passed."""
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), self._fail, TimeoutError())
        try:
            if not self.is_quiet or self.transport is None:
                raise ConnectionError("the server closed the connection")
            self.transport.writelines(pieces)
            await self._answer
        finally:
            timer.cancel()
            self._answer = None

    def close(self) -> None:
        """Close the connection at once; what waits for its answer fails."""
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.is_quiet = False
            return
        try:
            if self.messages.receive(data):
                self._answer.set_result(None)
        except Exception as error:
            self._fail(error)

    def eof_received(self) -> None:
        self.is_quiet = False
        if self._answer is not None and not self._answer.done():
            self.data_received(b"")

    def connection_lost(self, error: Exception | None) -> None:
        self.is_quiet = False
        self._fail(error or ConnectionError("the connection was closed"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


async def _open(way: Route, deadline: float) -> _Connection:
    loop, left = asyncio.get_running_loop(), deadline - time.monotonic()
    first_tls = None if way.tunnel else way.tls
    opening = loop.create_connection(_Connection, way.host, way.port, ssl=first_tls)
    _, connection = await asyncio.wait_for(opening, left)
    if way.tunnel is None:
        return connection
    target, headers = way.tunnel
    try:
        await connection.ask(connection.messages.request("CONNECT", target, headers), deadline)
        connection.messages.check_tunnel(way)
        upgrade = loop.start_tls(
            connection.transport,  # type: ignore[arg-type]
            connection,
            way.tls,  # type: ignore[arg-type]
            server_hostname=way.server_name,
        )
        connection.transport = await asyncio.wait_for(upgrade, deadline - time.monotonic())
        connection.messages = Messages()
        return connection
    except BaseException:
        connection.close()
        raise
