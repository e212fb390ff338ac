"""HTTP for the REST API: uvicorn does the protocol, a pool of threads the answers."""

import asyncio
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from keras_bn_serving.local_server.rest import Request, Response, page

_MAX_HEAD_BYTES = 8 << 20  # TF Serving has no limit; no client sends as much


class _Protocol(HttpToolsProtocol):
    """uvicorn's, which keeps heads and trailers without end (20 bytes for each that is sent), drops an empty
    query and a fragment, and answers 400 to unknown methods."""

    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self.send_400_response("Request Header Fields Too Large")
        else:
            super().data_received(data)

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        super().on_headers_complete()
        target = self.url.decode("latin-1")
        if not target.startswith("/"):  # http://host/path
            target = "/" + target.partition("://")[2].partition("/")[2]
        self.scope["target"] = target  # type: ignore[typeddict-unknown-key]

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        # uvicorn calls this while it handles the parser's error.
        if not isinstance(sys.exc_info()[1], httptools.HttpParserInvalidMethodError):
            return super().send_400_response(msg)
        answer = page(501, "Not Implemented")
        head = f"HTTP/1.1 501 Not Implemented\r\nContent-Type: {answer.content_type}\r\nConnection: close"
        length = f"Content-Length: {len(answer.body)}"
        self.transport.write(f"{head}\r\n{length}\r\n\r\n".encode() + answer.body)
        self.transport.close()


class HttpServer:
    """Serves `answer`, called in `threads` threads, on a port; refuses bodies over `max_body` bytes."""

    def __init__(self, answer: Callable[[Request], Response], threads: int, max_body: int) -> None:
        self._answer = answer
        self._max_body = max_body
        self._pool = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="rest")
        plain = {"interface": "asgi3", "http": _Protocol, "ws": "none", "lifespan": "off"}
        quiet = {"log_config": None, "log_level": "warning", "access_log": False, "server_header": False}
        options: dict[str, Any] = {**plain, **quiet, "proxy_headers": False}
        config = uvicorn.Config(self._app, timeout_keep_alive=75, **options)
        self._server = uvicorn.Server(config)
        self._sockets: list[socket.socket] = []
        sockets = {"sockets": self._sockets}
        self._thread = threading.Thread(target=self._server.run, kwargs=sockets, name="http", daemon=True)

    def start(self, host: str, port: int) -> None:
        """Listen on every address of `host`, or raise an OSError if the port is taken."""
        problem = OSError(f"{host} has no address")
        for family, *_, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
            both = host == "[::]"  # all interfaces, of IPv4 too
            try:
                one = socket.create_server(address[:2], family=family, backlog=2048, dualstack_ipv6=both)
                self._sockets.append(one)
            except OSError as error:  # a machine without IPv6 may have an IPv6 name for localhost
                problem = error
        if not self._sockets:
            raise problem
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Take no more connections, finish the requests that are here, within `timeout` seconds."""
        self._server.config.timeout_graceful_shutdown = max(int(timeout), 1)
        self._server.should_exit = True
        self._thread.join()
        self._pool.shutdown(wait=False)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
            if len(body) > self._max_body:
                return await _send(send, page(413, "Request Entity Too Large"))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request = Request(scope["method"], scope["target"], headers, bytes(body))
        await _send(send, await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, request))


async def _send(send: Any, response: Response) -> None:
    headers = {"Content-Type": response.content_type, "Content-Length": str(len(response.body))}
    headers |= {**response.headers, **({"Connection": "close"} if response.close else {})}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": pairs})
    await send({"type": "http.response.body", "body": response.body})
