"""HTTP for the REST API: uvicorn does the protocol, a pool of threads the answers."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.local_server.rest import Request, Response, page

_KEEP_ALIVE_SECONDS = 75
_log = logging.getLogger(__name__)


class HttpServer:
    """Serves an API on a port, in a thread of its own.

    Args:
        answer: makes the response to a request; called in one of `threads` threads.
        max_body: largest request body in bytes; a larger one is refused with status 413.
    """

    def __init__(self, answer: Callable[[Request], Response], threads: int, max_body: int) -> None:
        self._answer = answer
        self._max_body = max_body
        self._pool = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="rest")
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            proxy_headers=False,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._sockets: list[socket.socket] = []

    def start(self, host: str, port: int) -> None:
        """Listen on every address of `host`.

        Raises:
            OSError: the port is taken.
        """
        self._sockets = _listen(host, port)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Take no more connections, finish the requests that are here, within `timeout` seconds."""
        self._server.config.timeout_graceful_shutdown = max(int(timeout), 1)
        self._server.should_exit = True
        self._thread.join()
        self._pool.shutdown(wait=False)

    def _run(self) -> None:
        self._server.run(sockets=self._sockets)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
            if len(body) > self._max_body:
                return await _send(send, scope, page(413, "Request Entity Too Large"))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request = Request(scope["method"], scope["target"], headers, bytes(body))
        response = await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, request)
        await _send(send, scope, response)


async def _send(send: Any, scope: Any, response: Response) -> None:
    headers = [(b"Content-Type", response.content_type.encode())]
    headers += [(name.encode(), value.encode()) for name, value in response.headers.items()]
    headers.append((b"Content-Length", str(len(response.body)).encode()))
    if response.close:
        headers.append((b"Connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with the request target kept as it was sent, and the real server's page for what is not
    HTTP."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        target = self.url.decode("latin-1")
        if not target.startswith("/"):  # http://host/path
            target = "/" + target.partition("://")[2].partition("/")[2]
        self.scope["target"] = target  # type: ignore[typeddict-unknown-key]

    def send_400_response(self, msg: str) -> None:
        # uvicorn calls this while it handles the parser's error.
        unknown = isinstance(sys.exc_info()[1], httptools.HttpParserInvalidMethodError)
        status = HTTPStatus.NOT_IMPLEMENTED if unknown else HTTPStatus.BAD_REQUEST
        bad = page(status, status.phrase)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
            % (status, status.phrase.encode(), len(bad.body), bad.body)
        )
        self.transport.close()


def _listen(host: str, port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    problem: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            one = socket.socket(family, kind, protocol)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "[::]")
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
            one.listen(2048)
            one.setblocking(False)
            sockets.append(one)
        except OSError as error:
            problem = error
    if not sockets:
        raise problem or OSError(f"{host} has no address")
    return sockets
