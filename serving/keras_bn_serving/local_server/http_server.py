"""HTTP for the REST API: one asyncio loop reads and writes, a pool of threads answers."""

import asyncio
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable

from keras_bn_serving.local_server.addresses import listen
from keras_bn_serving.local_server.http_connection import Connection
from keras_bn_serving.local_server.rest import Request, Response, page

try:
    import uvloop as event_loops
except ImportError:  # there is none for Windows
    import asyncio as event_loops  # type: ignore[no-redef]

_IDLE_SECONDS = 75
_SWEEP_SECONDS = 5
_log = logging.getLogger(__name__)


class HttpServer:
    """Serves `answer`, called in `threads` threads, on a port; refuses bodies over `max_body` bytes."""

    def __init__(self, answer: Callable[[Request], Response], threads: int, max_body: int) -> None:
        self.answer = answer
        self.max_body = max_body
        self.connections: set[Connection] = set()
        self.stopping = False
        self.loop: asyncio.AbstractEventLoop = event_loops.new_event_loop()
        self._work: queue.SimpleQueue[tuple[Connection, Request] | None] = queue.SimpleQueue()
        self._workers = [
            threading.Thread(target=self._answer_for_ever, name=f"rest-{number}", daemon=True)
            for number in range(max(threads, 1))
        ]
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._listeners: list[asyncio.AbstractServer] = []

    def start(self, host: str, port: int) -> int:
        """Listen on every address of `host`; the port, which is chosen if `port` is 0.

        Raises:
            OSError: the port is taken on one of the addresses.
        """
        sockets = listen(host, port)
        for thread in (*self._workers, self._thread):
            thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(sockets), self.loop).result()
        return int(sockets[0].getsockname()[1])

    def stop(self, timeout: float) -> None:
        """Take no more connections, finish the requests that are here, within `timeout` seconds."""
        asyncio.run_coroutine_threadsafe(self._drain(timeout), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        for _ in self._workers:
            self._work.put(None)

    def submit(self, connection: Connection, request: Request) -> None:
        """Have a worker answer, and the loop call `connection.done` with the response."""
        self._work.put((connection, request))

    def _answer_for_ever(self) -> None:
        while (work := self._work.get()) is not None:
            connection, request = work
            try:
                response = self.answer(request)
            except Exception:
                _log.exception("Unhandled exception")
                response = page(500, "Internal Server Error")
            if self.loop.is_running():
                self.loop.call_soon_threadsafe(connection.done, request, response)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_later(_SWEEP_SECONDS, self._close_idle)
        self.loop.run_forever()

    async def _listen(self, sockets: list[socket.socket]) -> None:
        for one in sockets:
            self._listeners.append(await self.loop.create_server(lambda: Connection(self), sock=one))

    def _close_idle(self) -> None:
        for connection in list(self.connections):
            if connection.idle_seconds() > _IDLE_SECONDS:
                connection.close()
        self.loop.call_later(_SWEEP_SECONDS, self._close_idle)

    async def _drain(self, timeout: float) -> None:
        self.stopping = True
        for listener in self._listeners:
            listener.close()
        deadline = time.monotonic() + timeout
        while self.connections and time.monotonic() < deadline:
            for connection in list(self.connections):
                if connection.idle_seconds():
                    connection.close()
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.abort()
