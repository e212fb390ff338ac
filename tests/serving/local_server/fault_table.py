"""Counting what a fault costs: requests with a known answer, asked without a pause while it lasts."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
from tensorflow_serving.apis import predict_pb2

from tests.serving.golden.process import Server
from tests.serving.local_server.asking import PREDICT, message

ROWS: list[Row] = []  # printed when the tests have run


@dataclass
class Row:
    """What happened under one fault; `recovered` is the time from its end to the first right answer."""

    fault: str
    sent: int = 0
    failed: int = 0
    wrong: int = 0
    recovered: float | None = None
    note: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, answer: object, expected: object) -> None:
        """Count a request, and its outcome: an answer or an exception."""
        with self.lock:
            self.sent += 1
            self.failed += isinstance(answer, Exception)
            self.wrong += not isinstance(answer, Exception) and answer != expected


def row(fault: str) -> Row:
    """A new row of the table."""
    ROWS.append(Row(fault))
    return ROWS[-1]


def text() -> str:
    """The table."""
    lines = [f"{'fault':52} {'sent':>6} {'failed':>6} {'wrong':>6} {'recovered':>10}  note"]
    for one in ROWS:
        after = "" if one.recovered is None else f"{one.recovered:.2f} s"
        lines.append(f"{one.fault:52} {one.sent:6} {one.failed:6} {one.wrong:6} {after:>10}  {one.note}")
    return "\n".join(lines)


class Asker:
    """Asks model `m`, x + version of a float, over both APIs; a connection for each."""

    def __init__(self, server: Server, timeout: float = 20) -> None:
        self._timeout = timeout
        self._rest = http.client.HTTPConnection("localhost", server.rest_port, timeout=timeout)
        self._channel = grpc.insecure_channel(f"localhost:{server.port}")
        self._call = self._channel.unary_unary(PREDICT)

    def rest(self) -> float:
        """The answer to 1.0."""
        try:
            self._rest.request("POST", "/v1/models/m:predict", b'{"instances": [1.0]}')
            answer = json.loads(self._rest.getresponse().read())
        except Exception:
            self._rest.close()  # the next request opens another
            raise
        return float(answer["predictions"][0])

    def grpc(self) -> float:
        """The answer to 0.0."""
        data = self._call(message(1).SerializeToString(), timeout=self._timeout)
        return float(predict_pb2.PredictResponse.FromString(data).outputs["y"].float_val[0])

    def close(self) -> None:
        """Close both connections."""
        self._rest.close()
        self._channel.close()


def ask(asker: Asker, over_rest: bool) -> object:
    """The answer less the input, which is the version; or the exception."""
    try:
        return asker.rest() - 1 if over_rest else asker.grpc()
    except Exception as error:
        return error


def burst(found: Row, server: Server, count: int, version: float = 3.0) -> None:
    """Ask `count` requests, over both APIs in turn."""
    asker = Asker(server)
    for number in range(count):
        found.count(ask(asker, number % 2 == 0), version)
    asker.close()


@contextlib.contextmanager
def under_load(found: Row, server: Server, clients: int = 4) -> Iterator[None]:
    """Ask from so many threads while the block runs."""
    stop = threading.Event()

    def run(over_rest: bool) -> None:
        asker = Asker(server)
        while not stop.is_set():
            found.count(ask(asker, over_rest), 3.0)
        asker.close()

    threads = [threading.Thread(target=run, args=(number % 2 == 0,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def recovery(found: Row, server: Server, version: float = 3.0, seconds: float = 30) -> None:
    """Measure how long it takes until a new client is answered right over both APIs."""
    started = time.monotonic()
    while time.monotonic() < started + seconds:
        asker = Asker(server, timeout=5)
        answers = [ask(asker, over_rest) for over_rest in (True, False)]
        asker.close()
        if answers == [version, version]:
            found.recovered = time.monotonic() - started
            return
        time.sleep(0.01)
    raise AssertionError(f"{found.fault}: not recovered, last {answers}")
