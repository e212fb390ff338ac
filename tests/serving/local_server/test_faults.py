"""Faults and attacks, on real processes: what is served stays served."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc, predict_pb2

from tests.serving.golden import make_models
from tests.serving.golden.process import Server

Start = Callable[..., Server]


def _predict(server: Server, name: str = "m", body: bytes = b'{"instances": [1.0]}') -> list:
    url = f"http://localhost:{server.rest_port}/v1/models/{name}:predict"
    with urllib.request.urlopen(url, body, timeout=30) as response:
        return json.loads(response.read())["predictions"]


def _states(server: Server, name: str = "m") -> dict[int, str]:
    with urllib.request.urlopen(
        f"http://localhost:{server.rest_port}/v1/models/{name}", timeout=20
    ) as response:
        answer = json.loads(response.read())
    return {int(one["version"]): one["state"] for one in answer["model_version_status"]}


def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.02)


def _add(base: Path, source: Path, version: int) -> None:
    aside = base.parent / f"aside-{version}"
    shutil.copytree(source, aside)
    base.mkdir(exist_ok=True)
    aside.rename(base / str(version))


@contextlib.contextmanager
def _load(server: Server, names: tuple[str, ...] = ("m", "m")) -> Iterator[list[Exception]]:
    """Clients that ask without a pause, over REST and gRPC, while the block runs; the failures they met."""
    stop, failures = threading.Event(), []
    channel = grpc.insecure_channel(f"localhost:{server.port}")
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

    def ask(name: str, over_grpc: bool) -> None:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.inputs["x"].dtype = 1
        request.inputs["x"].tensor_shape.dim.add().size = 1
        message = request.SerializeToString()
        while not stop.is_set():
            try:
                call(message, timeout=30) if over_grpc else _predict(server, name)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask, args=(name, over)) for name in names for over in (False, True)]
    for thread in threads:
        thread.start()
    yield failures
    stop.set()
    for thread in threads:
        thread.join()
    channel.close()


def test_hot_swap_under_load_fails_no_request(models: Path, start: Start, tmp_path: Path) -> None:
    base = tmp_path / "live"
    _add(base, models / "three" / "1", 1)
    server = start(model_name="m", model_base_path=base)
    with _load(server) as failures:
        for version in (2, 3):
            _add(base, models / "three" / str(version), version)
            _until(lambda version=version: _states(server).get(version) == "AVAILABLE")
            shutil.rmtree(base / str(version - 1))
        _until(lambda: set(_states(server).values()) == {"END", "AVAILABLE"})
    assert failures == []
    assert _predict(server) == [4.0]


def test_reload_under_load_fails_no_request(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "three")

    def reload(channel: grpc.Channel, *names: str) -> None:
        request = model_management_pb2.ReloadConfigRequest()
        for name in names:
            request.config.model_config_list.config.add(
                name=name, base_path=str(models / "three"), model_platform="tensorflow"
            )
        model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=60)

    with grpc.insecure_channel(f"localhost:{server.port}") as channel, _load(server) as failures:
        for _ in range(3):
            reload(channel, "m", "other")
            assert _predict(server, "other") == [4.0]
            reload(channel, "m")
    assert failures == []


def test_a_version_that_appears_piece_by_piece_is_served_when_it_is_whole(
    models: Path, start: Start, tmp_path: Path
) -> None:
    base = tmp_path / "live"
    _add(base, models / "three" / "1", 1)
    server = start(
        model_name="m", model_base_path=base, max_num_load_retries=50, load_retry_interval_micros=100_000
    )
    whole = (models / "three" / "2" / "saved_model.pb").read_bytes()
    (base / "2").mkdir()
    _until(lambda: _states(server) == {1: "AVAILABLE", 2: "LOADING"})
    half = base / "2" / "saved_model.pb"
    half.write_bytes(whole[: len(whole) // 2])
    time.sleep(0.5)
    assert _predict(server) == [2.0]
    half.write_bytes(whole)
    _until(lambda: _states(server) == {1: "END", 2: "AVAILABLE"})
    assert _predict(server) == [3.0]


@pytest.mark.parametrize("batched", [False, True], ids=["direct", "batched"])
def test_images_of_the_wrong_rank_are_refused(start: Start, tmp_path: Path, batched: bool) -> None:
    """The convolution they would reach ends the process."""

    def build() -> dict:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], "x")
        y = tf.nn.relu(tf.nn.conv2d(x, tf.ones((3, 3, 3, 4)), 1, "VALID"))
        return {"serving_default": make_models.sig({"image": x}, {"y": y})}

    make_models.write_graph(str(tmp_path / "convolution" / "1"), build)
    server = start(model_name="m", model_base_path=tmp_path / "convolution", enable_batching=batched)
    reason = "Input image must have rank 4, as its signature says, but has rank 2 (shape [1, 3])"

    with pytest.raises(urllib.error.HTTPError) as over_rest:
        _predict(server, body=b'{"instances": [[0.0, 0.0, 0.0]]}')
    assert over_rest.value.code == 400
    assert json.loads(over_rest.value.read()) == {"error": reason}

    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

        def ask(*shape: int) -> grpc.StatusCode:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "m"
            request.inputs["image"].dtype = 1
            for size in shape:
                request.inputs["image"].tensor_shape.dim.add().size = size
            try:
                call(request.SerializeToString(), timeout=30)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        assert {ask(*[2] * rank) for rank in (1, 2, 3, 5)} == {grpc.StatusCode.INVALID_ARGUMENT}
        same_rank = [(1, 8, 8, 4), (1, 2, 2, 3), (1, 0, 0, 3), (1, 8, 8, 0), (0, 2**40, 8, 3)]
        answers = {shape: ask(*shape) for shape in same_rank}
        assert ask(1, 8, 8, 3) == grpc.StatusCode.OK, answers
    assert server.exit_code() is None


def test_bad_versions_leave_the_good_one(models: Path, start: Start, tmp_path: Path) -> None:
    base = tmp_path / "live"
    _add(base, models / "three" / "1", 1)
    server = start(model_name="m", model_base_path=base, max_num_load_retries=0)
    (base / "2").mkdir()
    (base / "2" / "saved_model.pb").write_bytes(b"\xff" * 100)
    (base / "3").symlink_to(tmp_path / "nowhere")
    _until(lambda: _states(server) == {1: "AVAILABLE", 3: "END"} or _states(server).get(2) == "END")
    (base / "4").write_text("a file")
    (base / "5").mkdir()
    _until(lambda: _states(server).get(5) == "END")
    assert _predict(server) == [2.0]
    shutil.rmtree(base)
    time.sleep(1.5)
    assert _predict(server) == [2.0], "a base path that vanishes unloads nothing"


def test_kill_and_start_again(models: Path, start: Start) -> None:
    first = start(model_name="m", model_base_path=models / "three")
    assert _predict(first) == [4.0]
    first.kill()
    arguments = ["--model_name=m", f"--model_base_path={models}/three", f"--port={first.port}"]
    again = Server(
        [*arguments, f"--rest_api_port={first.rest_port}"], first.stdout.parent / "again", bare=True
    )
    again.port, again.rest_port = first.port, first.rest_port
    with again:
        assert again.wait_for_ports(60)
        assert _predict(again) == [4.0]


def test_sigterm_answers_what_it_has_accepted(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "slow")
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(_predict(server, "m", b'{"instances": [300000]}'))
        except Exception as error:
            answers.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(
        1
    )  # what still waits to be accepted when the port closes is refused, and may be asked elsewhere
    os.kill(server.pid, signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert answers == [[300000]] * 4
    assert server.wait_for_exit(30) == 0


@pytest.fixture(scope="module")
def plain(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the attacks."""
    arguments = ["--model_name=m", f"--model_base_path={models}/three", "--rest_api_timeout_in_ms=5000"]
    with Server(arguments, tmp_path_factory.mktemp("plain") / "server") as server:
        assert server.wait_for_ports(60), server.stderr.read_text()
        yield server
        assert server.exit_code() is None


def test_slow_and_idle_clients_hold_nobody_up(plain: Server) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(300):
            one = stack.enter_context(socket.create_connection(("localhost", plain.rest_port), timeout=5))
            if number % 3 == 1:
                one.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHo")
            elif number % 3 == 2:
                one.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n{")
        started = time.monotonic()
        assert _predict(plain) == [4.0]
        assert time.monotonic() - started < 5
    assert _predict(plain) == [4.0]


_HTTP = st.one_of(
    st.binary(max_size=300),
    st.tuples(
        st.sampled_from([b"GET", b"POST", b"PUT", b"BREW", b"", b"\0"]),
        st.sampled_from([b"/v1/models/m", b"/v1/models/m:predict", b"*", b"//", b"http://", b"\xff", b""]),
        st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b""]),
        st.lists(
            st.sampled_from(
                [
                    b"Content-Length: 5",
                    b"Content-Length: -1",
                    b"Content-Length: x",
                    b"Transfer-Encoding: chunked",
                    b"Host: a",
                    b": b",
                    b"Content-Encoding: gzip",
                    b"Expect: 100-continue",
                    b"Connection: upgrade",
                    b"Upgrade: websocket",
                    b"X" * 70000,
                ]
            ),
            max_size=4,
        ),
        st.binary(max_size=50),
    ).map(
        lambda parts: (
            b" ".join(parts[:3]) + b"\r\n" + b"".join(h + b"\r\n" for h in parts[3]) + b"\r\n" + parts[4]
        )
    ),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=_HTTP)
def test_no_bytes_on_the_rest_port_are_a_server_error(plain: Server, data: bytes) -> None:
    answer = b""
    connection = socket.create_connection(("localhost", plain.rest_port), timeout=10)
    with connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert not answer.startswith(b"HTTP/1.1 5") or answer.startswith(b"HTTP/1.1 501")
    with socket.create_connection(("localhost", plain.rest_port), timeout=10) as connection:
        connection.sendall(b"GET /v1/models/m HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_message_is_an_unknown_error(plain: Server, data: st.DataObject) -> None:
    """Bytes that are no message are INTERNAL (gRPC's own answer); a message is never worse than refused."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].dtype = data.draw(st.sampled_from([0, 1, 3, 7, 20, 23, 101]))
    for size in data.draw(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=4)):
        request.inputs["x"].tensor_shape.dim.add().size = size
    request.inputs["x"].tensor_content = data.draw(st.binary(max_size=16))
    message = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    codes = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "INTERNAL"}
    with grpc.insecure_channel(f"localhost:{plain.port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        try:
            call(bytes(message), timeout=20)
        except grpc.RpcError as error:
            assert error.code().name in codes
            if error.code().name == "INTERNAL":
                assert "deserializing" in error.details()
