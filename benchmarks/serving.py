"""What the local server costs: over calling the model in process, over an empty handler, beside TensorFlow
Serving.

    python -m benchmarks.serving [--requests 2000] [--memory-requests 10000]

Loopback, batch size 1, all servers up at once and asked in turns. The floor is a handler that does nothing in
the same HTTP and gRPC stacks. With tensorflow_model_server on PATH it is measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc
import numpy as np

from benchmarks.timing import machine, table
from serving.local_server import launch
from serving.local_server.json_reader import parse

IMAGE = (224, 224, 3)
_FLOOR = """
import sys, time, grpc
from concurrent.futures import ThreadPoolExecutor
from serving.local_server.http_server import HttpServer
from serving.local_server.rest import Response
http = HttpServer(lambda request: Response(200, "application/json", b"{}"), 8, 1 << 30)
http.start("localhost", int(sys.argv[2]))
server = grpc.server(ThreadPoolExecutor(8))
handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
service = "tensorflow.serving.PredictionService"
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Predict": handler}),))
server.add_insecure_port("localhost:" + sys.argv[1])
server.start()
time.sleep(1e6)
"""


def export_models(folder: Path) -> None:
    """`scalar`: y = 2x + 1. `image`: the mean of each 224x224x3 image, so that carrying it is all the
    work."""
    import tensorflow as tf

    for name, shape in (("scalar", [None]), ("image", [None, *IMAGE])):
        axes = list(range(1, len(shape)))

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="x")])
        def serve(x: tf.Tensor, axes: list[int] = axes) -> dict[str, tf.Tensor]:
            return {"y": 2 * tf.reduce_mean(x, axes) + 1}

        module = tf.Module()
        module.serve = serve
        tf.saved_model.save(module, str(folder / name / "1"), signatures=serve)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Rest:
    """One keep-alive connection on a bare socket: a client that costs as little as one can in Python."""

    def __init__(self, port: int, name: str, body: bytes) -> None:
        self._socket = socket.create_connection(("localhost", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"POST /v1/models/{name}:predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        self._message = head.encode() + body

    def __call__(self) -> bytes:
        self._socket.sendall(self._message)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._socket.recv(1 << 16)
        head, _, body = data.partition(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], data
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._socket.recv(1 << 16)
        return body


def over_grpc(port: int, name: str, array: np.ndarray) -> Callable[[], bytes]:
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    tensor = request.inputs["x"]
    tensor.dtype, tensor.tensor_content = 1, array.tobytes()
    for size in array.shape:
        tensor.tensor_shape.dim.add().size = size
    channel = grpc.insecure_channel(f"localhost:{port}", [("grpc.max_send_message_length", -1)])
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    return lambda: call(request.SerializeToString(), timeout=60)


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, tuple[int, int, int]]]:
    """Running servers by name: gRPC port, REST port, process id."""
    config = folder / "models.config"
    config.write_text(
        "model_config_list {"
        + "".join(
            f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}'
            for name in ("scalar", "image")
        )
        + "}"
    )
    with contextlib.ExitStack() as stack:
        found = {}
        for name, flags in (("local", {}), ("local, batching", {"enable_batching": True})):
            server = stack.enter_context(launch(model_config_file=config, timeout=120, **flags))
            found[name] = (server.port, server.rest_port, server.process.pid)
        commands = {"floor": [sys.executable, "-c", _FLOOR]}
        binary = shutil.which("tensorflow_model_server")
        if binary:
            commands["tensorflow_model_server"] = [binary]
        for name, command in commands.items():
            ports = free_port(), free_port()
            flags = [f"--port={ports[0]}", f"--rest_api_port={ports[1]}", f"--model_config_file={config}"]
            arguments = [str(port) for port in ports] if name == "floor" else flags
            process = stack.enter_context(subprocess.Popen([*command, *arguments], stderr=subprocess.DEVNULL))
            stack.callback(process.terminate)
            for port in ports:
                while socket.socket().connect_ex(("localhost", port)):
                    time.sleep(0.1)
            found[name] = (*ports, process.pid)
        yield found


def latencies(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """p50 and p99 in milliseconds of candidates that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {
        name: (1e3 * float(np.percentile(values, 50)), 1e3 * float(np.percentile(values, 99)))
        for name, values in seconds.items()
    }


def throughput(
    make: Callable[[], Callable[[], object]], clients: int, seconds: float
) -> tuple[float, float, float]:
    """Requests a second, p50 and p99 in milliseconds, with that many clients (threads of one process)."""
    taken: list[float] = []
    runs = [make() for _ in range(clients)]
    stop = time.perf_counter() + seconds

    def ask(run: Callable[[], object]) -> None:
        while (started := time.perf_counter()) < stop:
            run()
            taken.append(time.perf_counter() - started)

    threads = [threading.Thread(target=ask, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(taken) / seconds, 1e3 * float(np.percentile(taken, 50)), 1e3 * float(np.percentile(taken, 99))


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--requests", type=int, default=2000, help="requests of each latency")
    arguments.add_argument("--seconds", type=float, default=3, help="length of each throughput measurement")
    arguments.add_argument(
        "--memory-requests", type=int, default=10_000, help="requests before memory is read again"
    )
    options = arguments.parse_args()
    print(machine())
    image = np.random.default_rng(0).random(IMAGE, np.float32)
    body = json.dumps({"instances": [image.tolist()]}).encode()
    scalar = b'{"instances": [1.0]}'
    with tempfile.TemporaryDirectory() as folder:
        export_models(Path(folder))
        with servers(Path(folder)) as found:
            one_request(Path(folder), found, scalar, options.requests)
            one_image(found, image, body)
            many_clients(found, scalar, options.seconds)
            memory(found, scalar, options.memory_requests)


def one_request(folder: Path, found: dict[str, tuple[int, int, int]], scalar: bytes, rounds: int) -> None:
    import tensorflow as tf

    signature = tf.saved_model.load(str(folder / "scalar" / "1")).signatures["serving_default"]
    x = np.float32([1.0])
    candidates: dict[str, Callable[[], object]] = {
        "in process": lambda: signature(x=tf.constant(x))["y"].numpy()
    }
    for name, (port, rest_port, _) in found.items():
        candidates[f"gRPC, {name}"] = over_grpc(port, "scalar", x)
        candidates[f"REST, {name}"] = Rest(rest_port, "scalar", scalar)
    latencies(candidates, 100)
    rows = [[name, f"{p50:.2f}", f"{p99:.2f}"] for name, (p50, p99) in latencies(candidates, rounds).items()]
    print("\nOne client, scalar model, milliseconds\n\n" + table(["", "p50", "p99"], rows))


def one_image(found: dict[str, tuple[int, int, int]], image: np.ndarray, body: bytes) -> None:
    def by_json() -> np.ndarray:
        return np.asarray(json.loads(body)["instances"], np.float32)

    # Processor time: both are pure computation, which a busy machine stretches unevenly.
    taken: dict[str, list[float]] = {"json": [], "ours": []}
    for _ in range(15):
        for name, read in (("json", by_json), ("ours", lambda: parse(body))):
            started = time.process_time()
            read()
            taken[name].append(time.process_time() - started)
    json_seconds, ours = (float(np.median(values)) for values in taken.values())
    print(
        f"\nReading {len(body) / 1e6:.2f} MB of JSON into an array: {1e3 * ours:.1f} ms of processor time, "
        f"{json_seconds / ours:.1f} times faster than json.loads + numpy.asarray"
    )
    candidates: dict[str, Callable[[], object]] = {}
    for name, (port, rest_port, _) in found.items():
        if name != "floor":
            candidates[f"gRPC tensor_content, {name}"] = over_grpc(port, "image", image[None])
            candidates[f"REST, {name}"] = Rest(rest_port, "image", body)
    latencies(candidates, 5)
    rows = [[name, f"{p50:.1f}", f"{p99:.1f}"] for name, (p50, p99) in latencies(candidates, 60).items()]
    print("\nOne client, an image, milliseconds\n\n" + table(["", "p50", "p99"], rows))


def many_clients(found: dict[str, tuple[int, int, int]], scalar: bytes, seconds: float) -> None:
    rows = []
    for clients in (1, 8, 64):
        for name, (port, rest_port, _) in found.items():
            for api, make in (
                ("REST", lambda port=rest_port: Rest(port, "scalar", scalar)),
                ("gRPC", lambda port=port: over_grpc(port, "scalar", np.float32([1.0]))),
            ):
                rate, p50, p99 = throughput(make, clients, seconds)
                rows.append([str(clients), api, name, f"{rate:.0f}", f"{p50:.2f}", f"{p99:.2f}"])
    print(
        "\nScalar model; the clients are threads of one Python process, which is part of what is measured\n"
    )
    print(table(["clients", "API", "server", "requests/s", "p50 ms", "p99 ms"], rows))


def memory(found: dict[str, tuple[int, int, int]], scalar: bytes, requests: int) -> None:
    rows = []
    for name, (port, rest_port, pid) in found.items():
        if name != "floor":
            runs = [Rest(rest_port, "scalar", scalar), over_grpc(port, "scalar", np.float32([1.0]))]
            sizes = []
            for count in (1000, requests):
                for number in range(count):
                    runs[number % 2]()
                sizes.append(resident_mib(pid))
            rows.append([name, *(f"{size:.0f}" for size in sizes), f"{sizes[1] - sizes[0]:+.1f}"])
    print(f"\nResident MiB after 1,000 more requests, and after {requests:,} more\n")
    print(table(["server", "1,000", f"{requests:,}", "growth"], rows))


if __name__ == "__main__":
    main()
