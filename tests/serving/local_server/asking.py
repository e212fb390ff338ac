"""What the fault tests share: asking a server, watching it, keeping it busy, changing its folders."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from tensorflow_serving.apis import predict_pb2

from tests.serving.golden.process import Server

PREDICT = "/tensorflow.serving.PredictionService/Predict"


def predict(server: Server, name: str = "m", body: bytes = b'{"instances": [1.0]}') -> list:
    """The predictions of one REST request on a connection of its own."""
    url = f"http://localhost:{server.rest_port}/v1/models/{name}:predict"
    with urllib.request.urlopen(url, body, timeout=30) as response:
        return json.loads(response.read())["predictions"]


def states(server: Server, name: str = "m") -> dict[int, str]:
    """The state of each version."""
    url = f"http://localhost:{server.rest_port}/v1/models/{name}"
    with urllib.request.urlopen(url, timeout=20) as response:
        answer = json.loads(response.read())
    return {int(one["version"]): one["state"] for one in answer["model_version_status"]}


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.02)


def add(base: Path, source: Path, version: int) -> None:
    """Let a version appear in one step."""
    aside = base.parent / f"aside-{version}"
    shutil.copytree(source, aside)
    base.mkdir(exist_ok=True)
    aside.rename(base / str(version))


def message(*shape: int, name: str = "m", alias: str = "x") -> predict_pb2.PredictRequest:
    """A request whose tensor is all zeros."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs[alias].dtype = 1
    for size in shape:
        request.inputs[alias].tensor_shape.dim.add().size = size
    return request


@contextlib.contextmanager
def load(server: Server, names: tuple[str, ...] = ("m", "m")) -> Iterator[list[Exception]]:
    """Clients that ask without a pause, over REST and gRPC, while the block runs; the failures they met."""
    stop, failures = threading.Event(), []
    channel = grpc.insecure_channel(f"localhost:{server.port}")
    call = channel.unary_unary(PREDICT)

    def ask(name: str, over_grpc: bool) -> None:
        request = message(1, name=name).SerializeToString()
        while not stop.is_set():
            try:
                call(request, timeout=30) if over_grpc else predict(server, name)
            except Exception as error:
                failures.append(error)
                time.sleep(0.01)

    threads = [threading.Thread(target=ask, args=(name, over)) for name in names for over in (False, True)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        channel.close()


def resident_mib(pid: int) -> float:
    """Memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def connections(port: int) -> list[int]:
    """The bytes that the owner of a port of this machine has yet to read from each of its connections."""
    found, there = [], ("01", "08")  # open, and closed by the client alone
    for file in ("tcp", "tcp6"):
        for row in Path("/proc/net", file).read_text().splitlines()[1:]:
            _, local, _, state, queues, *_ = row.split()
            if local.endswith(f":{port:04X}") and state in there:
                found.append(int(queues.split(":")[1], 16))
    return found


def descriptors(pid: int) -> int:
    """Open files and sockets of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))
