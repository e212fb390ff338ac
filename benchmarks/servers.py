"""The parts of the benchmark of the local server: models, servers, and cheap clients."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2

from keras_bn_serving.local_server import launch

IMAGE = (224, 224, 3)
LARGE_MIB = 64
ServerFlags = dict[str, dict[str, object]]  # of each server, by its name
FLOOR, REAL = "floor", "tensorflow_model_server"
# Handlers that do nothing, in the HTTP and gRPC stacks of the local server.
_FLOOR = """
import sys, time, grpc
from concurrent.futures import ThreadPoolExecutor
from keras_bn_serving.local_server.http_server import HttpServer
from keras_bn_serving.local_server.rest import Response
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


class Running(NamedTuple):
    """A server: its ports, and its process id."""

    port: int
    rest_port: int
    pid: int


def export_models(folder: Path) -> None:
    """`scalar`: y = 2x + 1. `image`: the mean of each 224x224x3 image, of numbers or of a JPEG file, so that
    carrying it is all the work. `large`: 64 MiB of weights."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def scalar(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": 2 * x + 1}

    @tf.function(input_signature=[tf.TensorSpec([None, *IMAGE], tf.float32, name="x")])
    def image(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.reduce_mean(x, [1, 2, 3])}

    def decoded(file: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.io.decode_jpeg(file, channels=3), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="x")])
    def image_bytes(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return image(tf.map_fn(decoded, x, fn_output_signature=tf.TensorSpec(IMAGE, tf.float32)))

    weights = tf.Variable(tf.random.stateless_normal((LARGE_MIB << 18, 1), [0, 0]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def large(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * weights[0]}

    for name, signatures in (
        ("scalar", scalar),
        ("image", {"serving_default": image, "image_bytes": image_bytes}),
        ("large", large),
    ):
        module = tf.Module()
        module.weights = weights if name == "large" else None
        tf.saved_model.save(module, str(folder / name / "1"), signatures=signatures)


def photograph() -> bytes:
    """A JPEG of 224x224 with the texture of noise, smoothed."""
    import tensorflow as tf

    noise = tf.random.stateless_uniform((1, 56, 56, 3), [0, 0], 0, 255)
    pixels = tf.cast(tf.image.resize(noise, IMAGE[:2], "bicubic"), tf.uint8)[0]
    return tf.io.encode_jpeg(pixels, quality=90).numpy()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def measured() -> list[str]:
    """The local server, and the real one if it is on PATH."""
    return ["local", REAL] if shutil.which(REAL) else ["local"]


def with_engines() -> ServerFlags:
    """The servers of `measured`, and the local one with OpenVINO if that is installed."""
    flags: ServerFlags = {name: {} for name in measured()}
    if importlib.util.find_spec("openvino"):
        flags["local, OpenVINO"] = {"engine": "openvino"}
    else:
        print("OpenVINO is left out; pip install 'keras-bn[bench]'.", file=sys.stderr)
    return flags


def start(stack: contextlib.ExitStack, name: str, **flags: object) -> Running:
    """Start a server, or the floor, until the stack is closed; return once its ports are open."""
    if name.startswith("local"):
        server = stack.enter_context(launch(timeout=120, **flags))
        return Running(server.port, server.rest_port, server.process.pid)
    ports = _free_port(), _free_port()
    flags |= {"port": ports[0], "rest_api_port": ports[1]}
    real = [REAL, *(f"--{flag}={value}" for flag, value in flags.items())]
    command = [sys.executable, "-c", _FLOOR, *map(str, ports)] if name == FLOOR else real
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = stack.enter_context(subprocess.Popen(command, **quiet))
    stack.callback(process.terminate)
    for port in ports:
        while socket.socket().connect_ex(("localhost", port)):
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with exit code {process.returncode}")
            time.sleep(0.1)
    return Running(*ports, process.pid)


@contextlib.contextmanager
def servers(folder: Path, flags: ServerFlags) -> Iterator[dict[str, Running]]:
    """Running servers of `scalar` and `image` by name: those of `flags`, one with batching, and the floor."""
    config = folder / "models.config"
    entries = (
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}'
        for name in ("scalar", "image")
    )
    config.write_text(f"model_config_list {{ {' '.join(entries)} }}")
    with contextlib.ExitStack() as stack:
        found = {name: start(stack, name, model_config_file=config, **flags[name]) for name in flags}
        found["local, batching"] = start(
            stack, "local, batching", model_config_file=config, enable_batching=True
        )
        found[FLOOR] = start(stack, FLOOR)
        yield found


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


def over_grpc(port: int, name: str, value: np.ndarray | bytes, key: str = "x") -> Callable[[], bytes]:
    """Asks over one channel: an array as tensor_content, a file as the `image_bytes` signature wants it.

    `key` is the name of the input.
    """
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    tensor = request.inputs[key]
    if isinstance(value, bytes):
        request.model_spec.signature_name = "image_bytes"
        tensor.dtype, shape = 7, (1,)
        tensor.string_val.append(value)
    else:
        tensor.dtype, shape = 1, value.shape
        tensor.tensor_content = value.tobytes()
    for size in shape:
        tensor.tensor_shape.dim.add().size = size
    channel = grpc.insecure_channel(f"localhost:{port}", [("grpc.max_send_message_length", -1)])
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    return lambda: call(request.SerializeToString(), timeout=60)


def as_base64(file: bytes) -> bytes:
    """The REST body that asks the `image_bytes` signature of one file."""
    text = base64.b64encode(file).decode()
    return json.dumps({"signature_name": "image_bytes", "instances": [{"b64": text}]}).encode()


def states(port: int, name: str) -> dict[int, str]:
    """The state of each version of a model."""
    with socket.create_connection(("localhost", port)) as connection:
        connection.sendall(f"GET /v1/models/{name} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    listed = json.loads(answer.partition(b"\r\n\r\n")[2])["model_version_status"]
    return {int(entry["version"]): entry["state"] for entry in listed}


def resident_mib(pid: int) -> float:
    """Memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
