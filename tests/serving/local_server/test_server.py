"""The server as a process: its ports, its options, its extensions."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from keras_bn_serving.local_server import launch
from keras_bn_serving.wire.errors import ServingError
from tests.serving.golden.process import Server

Start = Callable[..., Server]


def _get(server: Server, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(
            f"http://localhost:{server.rest_port}{path}", body, timeout=20
        ) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def _status(channel: grpc.Channel) -> get_model_status_pb2.GetModelStatusResponse:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "m"
    return model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=20)


def test_launch_serves_and_stops(models: Path) -> None:
    with launch(models / "three", model_name="m") as server:
        with urllib.request.urlopen(f"http://localhost:{server.rest_port}/v1/models/m") as response:
            assert b'"AVAILABLE"' in response.read()
        with grpc.insecure_channel(f"localhost:{server.port}") as channel:
            assert len(_status(channel).model_version_status) == 1
        assert "Exporting HTTP/REST API at:localhost:" in server.output
    assert server.process.returncode == 0


def test_launch_says_what_the_server_said(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(ServingError, match=r"ended with exit code 255; it wrote:\n(.|\n)*saved_model.pb"):
        launch(tmp_path, max_num_load_retries=0)


def test_the_server_needs_no_keras() -> None:
    script = (
        "import sys, keras_bn_serving.local_server.main as main\n"
        "assert main.main(['--version']) == 0\n"
        "sys.exit(any(name.split('.')[0] in ('keras', 'keras_bn') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize("module", ["tensorflow", "httptools"])
def test_a_missing_package_is_named_with_its_remedy(module: str) -> None:
    sentence = f"The local model server needs {module}: pip install 'keras-bn-serving[server]'"
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from keras_bn_serving.local_server import launch\n"
        "from keras_bn_serving.local_server.main import main\n"
        "print(main(['--version']))\n"
        "launch('/nowhere')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "1\n"
    first, *_, last = done.stderr.strip().splitlines()
    assert first == sentence
    assert last == f"keras_bn_serving.wire.errors.ServingError: {sentence}" or last.endswith(sentence)


def test_only_loopback_unless_told_otherwise(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "three")
    tables = (Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()).splitlines()
    listening = [line.split()[1].split(":") for line in tables if line.split()[3] == "0A"]
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    for port in (server.port, server.rest_port):
        addresses = {address for address, number in listening if int(number, 16) == port}
        assert addresses
        assert addresses <= loopback


def test_a_taken_grpc_port_ends_the_server_and_a_taken_rest_port_does_not(models: Path, start: Start) -> None:
    first = start(model_name="m", model_base_path=models / "three")
    clash = Server(
        ["--model_name=m", f"--model_base_path={models}/three", f"--port={first.port}"],
        first.stdout.parent / "clash",
        bare=True,
    )
    assert clash.wait_for_exit(60) == 255
    assert (
        "Failed to start server. Error: UNKNOWN: Failed to BuildAndStart gRPC server"
        in clash.stdout.read_text()
    )
    other = Server(
        [
            "--model_name=m",
            f"--model_base_path={models}/three",
            "--port=0",
            f"--grpc_socket_path={first.stdout.parent}/s",
            f"--rest_api_port={first.rest_port}",
        ],
        first.stdout.parent / "other",
        bare=True,
    )
    with other, grpc.insecure_channel(f"unix:{first.stdout.parent}/s") as channel:
        grpc.channel_ready_future(channel).result(60)
        assert len(_status(channel).model_version_status) == 1
        assert f"Failed to start HTTP Server at localhost:{first.rest_port}" in other.stderr.read_text()


def test_health_and_reflection(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "three", enable_grpc_healthcheck_service=True)
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "PredictionService", "ModelService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        names = {service.name for service in answer.list_services_response.service}
        assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"} <= names


def test_admin_endpoints_request_log_and_limits(models: Path, start: Start) -> None:
    server = start(
        model_name="m",
        model_base_path=models / "three",
        enable_admin_endpoints=True,
        log_requests=True,
        rest_api_max_body_bytes=1000,
    )
    assert _get(server, "/healthz")[0] == _get(server, "/readyz")[0] == 200
    assert json.loads(_get(server, "/models")[1]) == {
        "models": [{"name": "m", "versions": [{"version": 3, "state": "AVAILABLE"}], "labels": {}}]
    }
    assert _get(server, "/v1/models/m:predict", b'{"instances": [1.0]}')[0] == 200
    assert _get(server, "/v1/models/m:predict", b" " * 1001)[0] == 413
    assert _get(server, "/v1/models/m")[0] == 200
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        _status(channel)
    lines = [json.loads(line) for line in server.stderr.read_text().splitlines() if line.startswith("{")]
    assert [(line["entrypoint"], line["api"], line["model"], line["status"]) for line in lines] == [
        ("REST", "predict", "m", "OK"),
        ("REST", "", "m", "OK"),
        ("GRPC", "GetModelStatus", "m", "OK"),
    ]


def test_admin_endpoints_are_not_there_unless_asked_for(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "three")
    assert {_get(server, path)[0] for path in ("/healthz", "/readyz", "/models", "/")} == {404}


def test_refusing_to_start_without_a_version(tmp_path: Path, start: Start) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        server = start(wait=False, model_name="m", model_base_path=path, fail_if_no_model_versions_found=True)
        assert server.wait_for_exit(60) == 255
        assert "Failed to start server. Error: NOT_FOUND: " in server.stdout.read_text()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A certificate authority, and keys it signed for a server and a client, as PEM texts."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-days",
        "1",
        "-subj",
        "/CN=test authority",
    )
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "client"):
        openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/CN={name}",
        )
        openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            f"{name}.crt",
            "-days",
            "1",
            "-extfile",
            "names",
        )
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".key", ".crt")}


def test_tls_with_client_certificates(
    models: Path, start: Start, tmp_path: Path, certificates: dict[str, bytes]
) -> None:
    def quoted(name: str) -> str:
        return json.dumps(certificates[name].decode())

    config = tmp_path / "ssl.config"
    config.write_text(
        f"server_key: {quoted('server.key')} server_cert: {quoted('server.crt')} custom_ca: "
        f"{quoted('ca.crt')} "
        "client_verify: true"
    )
    server = start(model_name="m", model_base_path=models / "three", ssl_config_file=config)
    known = grpc.ssl_channel_credentials(
        certificates["ca.crt"], certificates["client.key"], certificates["client.crt"]
    )
    with grpc.secure_channel(f"localhost:{server.port}", known) as channel:
        assert len(_status(channel).model_version_status) == 1
    stranger = grpc.ssl_channel_credentials(certificates["ca.crt"])
    with grpc.secure_channel(f"localhost:{server.port}", stranger) as channel, pytest.raises(grpc.RpcError):
        _status(channel)
    with grpc.insecure_channel(f"localhost:{server.port}") as channel, pytest.raises(grpc.RpcError):
        _status(channel)


def test_broken_tls_configuration_is_a_startup_error(models: Path, start: Start, tmp_path: Path) -> None:
    config = tmp_path / "ssl.config"
    for text in ("server_key: 'no key' server_cert: 'no certificate'", "what is this"):
        config.write_text(text)
        server = start(wait=False, model_name="m", model_base_path=models / "three", ssl_config_file=config)
        assert server.wait_for_exit(60) == 255
        assert "Failed to start server. Error: " in server.stdout.read_text()


def test_pipelined_requests_are_answered_in_order(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "three")
    bodies = [b'{"instances": [%d.0]}' % number for number in range(5)]
    requests = [
        b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        for body in bodies
    ]
    with socket.create_connection(("localhost", server.rest_port), timeout=20) as connection:
        connection.sendall(b"".join(requests))
        received = b""
        while received.count(b"predictions") < 5 or not received.endswith(b"}"):
            received += connection.recv(65536)
    positions = [received.index(b"[%d.0" % (number + 3)) for number in range(5)]
    assert positions == sorted(positions)
