"""Servers that end, on real processes: nothing they took is lost, and what is answered is right."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import urllib.error
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from keras_bn_serving.client import Client
from keras_bn_serving.wire.errors import ServingError, UnavailableError
from tests.serving.golden import make_models
from tests.serving.golden.process import Server
from tests.serving.local_server.asking import (
    PREDICT,
    connections,
    descriptors,
    load,
    message,
    predict,
    until,
)

Start = Callable[..., Server]

# A server that ends


def test_killed_under_load_and_started_again(models: Path, start: Start) -> None:
    first = start(model_name="m", model_base_path=models / "three")
    addresses = f"http://localhost:{first.rest_port}", f"grpc://localhost:{first.port}"
    clients = [Client(address, model="m", timeout=60) for address in addresses]

    def no_failure() -> bool:
        failures.clear()
        for _ in range(20):
            predict(first)  # on whose ports the other is
        return not failures

    with load(first) as failures:
        assert [client.predict([1.0]).tolist() for client in clients] == [[4.0]] * 2
        first.kill()
        for client in clients:
            with pytest.raises(UnavailableError):
                client.predict([1.0])
        assert failures
        flags = ["--model_name=m", f"--model_base_path={models}/three", f"--port={first.port}"]
        again = Server(
            [*flags, f"--rest_api_port={first.rest_port}"], first.stdout.parent / "again", bare=True
        )
        with again:
            for client in clients:
                assert client.wait_until_ready(60) == 3
                assert client.predict([1.0]).tolist() == [4.0]
            until(no_failure)
    for client in clients:
        client.close()


def test_sigterm_answers_what_it_has_accepted(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "slow")
    until(lambda: not connections(server.port) and not connections(server.rest_port))
    idle = descriptors(server.pid)
    clients = [http.client.HTTPConnection("localhost", server.rest_port, timeout=60) for _ in range(4)]
    for client in clients:
        client.request("POST", "/v1/models/m:predict", b'{"instances": [300000]}')
    # What still waits to be accepted when the port closes is refused, and may be asked elsewhere.
    until(lambda: descriptors(server.pid) >= idle + len(clients) and not any(connections(server.rest_port)))
    os.kill(server.pid, signal.SIGTERM)
    for client in clients:
        assert json.loads(client.getresponse().read()) == {"predictions": [300000]}
        client.close()
    assert server.wait_for_exit(30) == 0


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_sigterm_under_load_loses_no_request_that_it_took(models: Path, start: Start, scheme: str) -> None:
    """Each answer is right, or the code says that the request may be sent elsewhere."""
    server = start(model_name="m", model_base_path=models / "three")
    port = server.rest_port if scheme == "http" else server.port
    answered, refused = [], []

    def ask() -> None:
        with Client(f"{scheme}://localhost:{port}", model="m", timeout=30, retries=0) as client:
            while not refused:
                try:
                    answered.append(client.predict([1.0, 2.0]).tolist())
                except ServingError as error:
                    refused.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(answered) > 100)
    os.kill(server.pid, signal.SIGTERM)
    # A connection accepted at that moment may be served until the drain ends, after 30 s.
    assert server.wait_for_exit(60) == 0
    for thread in threads:
        thread.join()
    assert set(map(tuple, answered)) == {(4.0, 5.0)}
    # A gRPC server that ends cancels the calls that it has not begun.
    assert set(refused) <= ({"UNAVAILABLE"} if scheme == "http" else {"UNAVAILABLE", "CANCELLED"})


# Requests that are more than they seem


@pytest.mark.parametrize("seconds", [None, 1e9])
def test_a_call_may_wait_for_ever(models: Path, start: Start, seconds: float | None) -> None:
    server = start(model_name="m", model_base_path=models / "three")
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        answer = channel.unary_unary(PREDICT)(message(1).SerializeToString(), timeout=seconds)
    assert predict_pb2.PredictResponse.FromString(answer).outputs["y"].float_val == [3.0]


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
        predict(server, body=b'{"instances": [[0.0, 0.0, 0.0]]}')
    assert over_rest.value.code == 400
    assert json.loads(over_rest.value.read()) == {"error": reason}

    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        call = channel.unary_unary(PREDICT)

        def ask(*shape: int) -> grpc.StatusCode:
            try:
                call(message(*shape, alias="image").SerializeToString(), timeout=30)
            except grpc.RpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        assert {ask(*[2] * rank) for rank in (1, 2, 3, 5)} == {grpc.StatusCode.INVALID_ARGUMENT}
        same_rank = [(1, 8, 8, 4), (1, 2, 2, 3), (1, 0, 0, 3), (1, 8, 8, 0), (0, 2**40, 8, 3)]
        answers = {shape: ask(*shape) for shape in same_rank}
        assert ask(1, 8, 8, 3) == grpc.StatusCode.OK, answers
    assert server.exit_code() is None
