"""Servers on the loopback interface that misbehave as a test wants."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import re
import socket
import threading
import time

import grpc

METADATA = json.dumps(
    {
        "model_spec": {"name": "m", "signature_name": "", "version": "1"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        name: {
                            tensor: {
                                "dtype": "DT_FLOAT",
                                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                                "name": f"{tensor}:0",
                            }
                        }
                        for name, tensor in (("inputs", "x"), ("outputs", "y"))
                    }
                }
            }
        },
    }
).encode()


def http(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class EchoServer:
    """Speaks TF Serving's REST: the metadata, and predictions that are what was sent; counts them."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.metadata, self.predictions, self.connections, self.busiest = 0, 0, 0, 0
        self.refusals: list[bytes] = []  # sent in the place of the first answers
        self._busy = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._ready.wait()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = await reader.readexactly(int(length[1])) if length else b""
                self._busy += 1
                self.busiest = max(self.busiest, self._busy)
                await asyncio.sleep(self.pause)
                self._busy -= 1
                writer.write(self._answer(head, body))
        writer.close()

    def _answer(self, head: bytes, body: bytes) -> bytes:
        if b"/metadata " in head:
            self.metadata += 1
            return http(200, METADATA)
        if self.refusals:
            return self.refusals.pop(0)
        self.predictions += 1
        return http(200, json.dumps({"outputs": json.loads(body)["inputs"]["x"]}).encode())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()


@contextlib.contextmanager
def raw_server(talk):
    """A port where `talk(connection)` answers each connection in a thread of its own."""

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                threading.Thread(target=converse, args=[connection], daemon=True).start()

    def converse(connection):
        with contextlib.suppress(OSError), connection:
            talk(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def grpc_server(answer, service="PredictionService", method="Predict", threads=8, **options):
    """A port where `answer(request, context)` is one gRPC method, bytes in and out."""
    handler = grpc.unary_unary_rpc_method_handler(answer)
    handlers = grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", {method: handler})
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(threads), **options)
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def in_children(work, count: int = 4, seconds: float = 60.0) -> list[int | None]:
    """Run work(number) in forked processes; their exit codes, None for one that hangs."""
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(number)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < count and time.monotonic() < deadline:
        for child in set(children) - set(codes):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for child in set(children) - set(codes):
        os.kill(child, 9)
        os.waitpid(child, 0)
    return [codes.get(child) for child in children]
