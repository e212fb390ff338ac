"""Faults on real processes: what each costs is counted, and none may fail or spoil another's request.

The table is printed at the end of the run: fault, requests sent, failed, wrong, recovered after.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from keras_bn_serving.local_server.addresses import addresses
from tests.serving.golden import make_models
from tests.serving.golden.process import Server
from tests.serving.local_server.asking import PREDICT, add, message, predict, resident_mib, states, until
from tests.serving.local_server.fault_table import Row, burst, recovery, row, under_load

Start = Callable[..., Server]
_HEAD = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n"
_PREDICT = _HEAD + b'%b\r\n{"instances": [1.0]}'
_ENGINES = ["tensorflow"] + (["openvino"] if importlib.util.find_spec("openvino") else [])


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tmp_path_factory.mktemp("metrics") / "monitoring.config"
    config.write_text("prometheus_config { enable: true }")
    return config


@pytest.fixture(scope="module")
def server(models: Path, metrics: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the faults that clients bring about."""
    flags = ["--model_name=m", f"--model_base_path={models}/three", f"--monitoring_config_file={metrics}"]
    with Server(flags, tmp_path_factory.mktemp("faults") / "server") as running:
        assert running.wait_for_ports(60), running.stderr.read_text()
        yield running
        assert running.exit_code() is None


def exchange(server: Server, data: bytes, half_close: bool = False, timeout: float = 20) -> bytes:
    """What a server sends back on a connection of its own, until it closes it or has answered whole."""
    with socket.create_connection(("localhost", server.rest_port), timeout=timeout) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while half_close or not re.search(rb"\r\n\r\n.*}\s*$", received, re.DOTALL):
            piece = connection.recv(65536)
            if not piece:
                break
            received += piece
    return received


def scrape(server: Server) -> str:
    """The metrics, once each line is found to be of Prometheus's text form."""
    head, _, body = exchange(
        server, b"GET /monitoring/prometheus/metrics HTTP/1.0\r\n\r\n", timeout=60
    ).partition(b"\r\n\r\n")
    assert head.split()[1] == b"200", head
    text = body.decode()
    sample = r'[\w:]+\{(\w+="([^"\\\n]|\\["\\n])*",?)*\} \S+'
    for line in text.removesuffix("\n").split("\n"):
        assert re.fullmatch(rf"# TYPE [\w:]+ \w+|{sample}", line), line
    return text


def settled_mib(pid: int) -> float:
    """The least that a process holds within half a second: requests in flight come and go."""
    sizes = []
    for _ in range(10):
        sizes.append(resident_mib(pid))
        time.sleep(0.05)
    return min(sizes)


def good(found: Row) -> None:
    assert (found.failed, found.wrong) == (0, 0), found


# What clients send


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(raw=st.binary(min_size=1, max_size=8), whole=st.booleans())
def test_no_path_spoils_a_later_request(server: Server, raw: bytes, whole: bool) -> None:
    """Every kind of byte in every part of a path, escaped or as it is."""
    path = raw if whole else b"/v1/models/" + b"".join(b"%%%02X" % byte for byte in raw)
    for target in (path, path + b":predict", path + b"/labels/" + raw, path + b"/metadata"):
        answer = exchange(server, b"GET %b HTTP/1.0\r\n\r\n" % target, half_close=True)
        assert not answer.startswith((b"HTTP/1.1 500", b"HTTP/1.1 2"))
    assert predict(server) == [4.0]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.text(max_size=8).filter("m".__ne__)
    | st.sampled_from(["\n", '"', "\\", "\r", "\0", "a\nb{} 1", "\u2028"])
)
def test_no_name_spoils_a_later_request(server: Server, name: str) -> None:
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(PREDICT)(message(1, name=name).SerializeToString(), timeout=20)
        code = grpc.StatusCode.NOT_FOUND if name else grpc.StatusCode.INVALID_ARGUMENT
        assert raised.value.code() == code


def test_metrics_survive_every_name(server: Server) -> None:
    found = row("names of every byte, REST and gRPC")
    with under_load(found, server):
        for byte in range(256):
            exchange(server, b"GET /v1/models/x%%%02Xy HTTP/1.0\r\n\r\n" % byte)
        exchange(server, b"GET /v1/models/%ED%A0%80 HTTP/1.0\r\n\r\n")
        with grpc.insecure_channel(f"localhost:{server.port}") as channel:
            for name in ("a\nb", 'c"d', "e\\f", "g\\", "\x85", "x" * 200_000):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(PREDICT)(message(1, name=name).SerializeToString(), timeout=20)
    recovery(found, server)
    good(found)
    text = scrape(server)
    assert r'model_name="a\nb"' in text
    assert len(text) < 5_000_000


def test_a_name_of_200_000_characters(server: Server) -> None:
    """As the original: it is not found, and its name is said over REST."""
    name = b"x" * 200_000
    answer = exchange(server, b"GET /v1/models/%b HTTP/1.1\r\nHost: a\r\n\r\n" % name)
    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b"Could not find any versions of model " + name in answer


@pytest.mark.parametrize("method", ["PROPFIND", "MKCOL", "SEARCH", "get", "TRACE", "CONNECT"])
def test_other_methods_are_not_implemented(server: Server, method: str) -> None:
    answer = exchange(server, f"{method} /v1/models/m HTTP/1.1\r\nHost: a\r\n\r\n".encode(), half_close=True)
    assert answer.startswith(b"HTTP/1.1 501 Not Implemented\r\n")


def test_half_closed_connections_are_answered(server: Server) -> None:
    found = row("client shuts its side after sending")
    for _ in range(50):
        answer = exchange(server, _PREDICT % b"", half_close=True)
        found.count(b"4.0" in answer, True)
    two = exchange(server, _PREDICT % b"" + _PREDICT % b"Connection: close\r\n", half_close=True)
    found.count(two.count(b"HTTP/1.1 200"), 2)
    recovery(found, server)
    good(found)


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.3, HTTP/1.1", "h2c, websocket"])
def test_an_upgrade_is_declined_and_the_request_answered(server: Server, protocol: str) -> None:
    """`Upgrade: h2c` comes with each first request of Java's own client."""
    found = row(f"Upgrade: {protocol}")
    headers = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAEAAEAA\r\n"
    for _ in range(20):
        found.count(b"4.0" in exchange(server, _PREDICT % headers.encode()), True)
    with socket.create_connection(("localhost", server.rest_port), timeout=20) as connection:
        for _ in range(3):  # the connection goes on in HTTP/1.1
            connection.sendall(_PREDICT % headers.encode())
            answer = connection.recv(65536)
            found.count(answer.startswith(b"HTTP/1.1 200") and b"4.0" in answer, True)
    recovery(found, server)
    good(found)


def test_overload(server: Server) -> None:
    """More clients than threads: they wait, and none is refused or answered wrong."""
    found = row("64 clients, 4 threads to a processor")
    with under_load(found, server, clients=64):
        until(lambda: found.sent > 1000)
    recovery(found, server)
    good(found)


# What becomes of the process


def started(models: Path, folder: Path, shell: str, *flags: str) -> Server:
    """A server that a shell starts: `"$@"` in its script."""
    command = ["sh", "-c", shell, "sh", sys.executable, "-m", "keras_bn_serving.local_server"]
    arguments = ["--model_name=m", f"--model_base_path={models}/three", "--log_requests", *flags]
    return Server(arguments, folder, command=command)


@pytest.mark.parametrize(
    ("fault", "redirection"),
    [
        ("log on a full disk", "2>/dev/full"),
        ("stderr closed", "2>&-"),
        ("log to a pipe that nobody reads", "2>{}"),
    ],
)
def test_a_log_that_cannot_be_written(models: Path, tmp_path: Path, fault: str, redirection: str) -> None:
    if "full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR)
    found = row(fault)
    wrong = message(1)
    wrong.inputs["x"].dtype = 3
    shell = f'exec "$@" {redirection.format(tmp_path / "pipe")}'
    with started(models, tmp_path / "server", shell) as server:
        assert server.wait_for_ports(60)
        burst(found, server, 1500)  # a pipe holds the lines of some 500
        with grpc.insecure_channel(f"localhost:{server.port}") as channel:
            for _ in range(500):  # what the runtime refuses is logged by TensorFlow too
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(PREDICT)(wrong.SerializeToString(), timeout=5)
        recovery(found, server)
        good(found)
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait_for_exit(40) == 0
    os.close(reader)


def test_descriptors_exhausted(models: Path, tmp_path: Path) -> None:
    """Who is connected is served; who is not, once there are descriptors again."""
    found = row("descriptors exhausted")
    with started(models, tmp_path / "server", 'ulimit -n 300; exec "$@"') as server:
        assert server.wait_for_ports(60), server.stderr.read_text()
        with contextlib.ExitStack() as idle, under_load(found, server):
            until(lambda: found.sent > 20)
            for _ in range(400):
                one = idle.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", server.rest_port))
            sent = found.sent
            until(lambda: found.sent > sent + 200)
        recovery(found, server)
        good(found)


def test_a_second_sigterm_ends_the_drain(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "slow")
    with socket.create_connection(("localhost", server.rest_port), timeout=20) as connection:
        body = b'{"instances": [2147483647]}'
        head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
        connection.setblocking(False)
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: "Stopping" in server.stderr.read_text())
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait_for_exit(10) == -signal.SIGTERM


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_port_held_on_one_address_is_taken(models: Path, tmp_path: Path, address: str) -> None:
    if address not in addresses("localhost"):
        pytest.skip(f"localhost is not {address} here")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    holder = socket.create_server((address, 0), family=family)
    port = holder.getsockname()[1]
    flags = ["--model_name=m", f"--model_base_path={models}/three", f"--port={port}"]
    with holder, Server(flags, tmp_path / "server", bare=True) as server:
        assert server.wait_for_exit(60) == 255
        assert "Failed to BuildAndStart gRPC server" in server.stdout.read_text()
        assert "Running gRPC" not in server.stderr.read_text()


# What becomes of versions


@pytest.mark.parametrize("engine", _ENGINES)
def test_hot_swaps_leave_memory_as_it_was(start: Start, tmp_path: Path, engine: str) -> None:
    """A version with 16 MiB of weights, swapped under load."""

    def build() -> dict:
        tf = make_models.tf
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        weights = tf.constant(np.random.default_rng(0).random((2048, 2048), np.float32))
        zero = tf.reduce_sum(tf.matmul(tf.zeros((1, 2048)) * x[0], weights))
        return {"serving_default": make_models.sig({"x": x}, {"y": x + 3.0 + zero})}

    make_models.write_graph(str(tmp_path / "model"), build)
    base = tmp_path / "live"
    add(base, tmp_path / "model", 1)
    server = start(model_name="m", model_base_path=base, engine=engine)
    found, memory = row(f"8 hot swaps of 16 MiB, {engine}"), []
    with under_load(found, server):
        for version in range(2, 10):
            add(base, tmp_path / "model", version)
            shutil.rmtree(base / str(version - 1))
            until(lambda version=version: states(server).get(version) == "AVAILABLE")
            until(lambda version=version: states(server).get(version - 1) == "END")
            memory.append(settled_mib(server.pid))
    found.note = "MiB " + " ".join(f"{size:.0f}" for size in memory)
    recovery(found, server)
    good(found)
    # Versions that stayed would have added their weights five times between these; one reading alone may be
    # that much above the others.
    assert min(memory[-2:]) < min(memory[1:4]) + 3 * 16, memory


def test_a_reload_that_waits_for_a_missing_folder_holds_up_no_other(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "three")
    found = row("reload names a missing base path")

    def config(**paths: Path) -> bytes:
        request = model_management_pb2.ReloadConfigRequest()
        for name, path in paths.items():
            request.config.model_config_list.config.add(
                name=name, base_path=str(path), model_platform="tensorflow"
            )
        return request

    with grpc.insecure_channel(f"localhost:{server.port}") as channel, under_load(found, server):
        reload = model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest
        waiting = [
            reload.future(config(m=models / "three", **{f"gone{number}": models / "nowhere"}))
            for number in range(20)  # more than there are threads
        ]
        with pytest.raises(grpc.RpcError):
            reload(config(m=models / "three", gone=models / "nowhere"), timeout=2)
        reload(config(m=models / "three", other=models / "three"), timeout=60)
        assert predict(server, "other") == [4.0]
        for one in waiting:
            assert one.exception(timeout=60).code() == grpc.StatusCode.ABORTED
    recovery(found, server)
    good(found)


def test_killed_and_started_again(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "three")
    found = row("killed, and started again")
    with under_load(found, server):
        until(lambda: found.sent > 20)
        server.kill()
        ended = time.monotonic()
        flags = ["--model_name=m", f"--model_base_path={models}/three", f"--port={server.port}"]
        flags.append(f"--rest_api_port={server.rest_port}")
        with Server(flags, server.stdout.parent / "again", bare=True):
            recovery(found, server, seconds=60)
            found.note = f"{time.monotonic() - ended:.1f} s from the kill"
    assert found.failed > 0
    assert found.wrong == 0
