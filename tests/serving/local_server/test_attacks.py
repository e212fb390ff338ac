"""Attacks, on a real process: no crash, no leak, no 5xx where a 4xx is due, and the next good request is
answered."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.golden.process import Server
from tests.serving.local_server.asking import PREDICT, descriptors, message, predict, resident_mib, until

# Memory that the allocator may keep after the largest request: some copies of 100 MiB.
_KEPT_MIB = 700
_LIMIT = 1_000_000
_PATH = "/v1/models/m:predict"


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all; after them it has neither grown nor lost a connection."""
    flags = ["--model_name=m", f"--model_base_path={models}/three", "--rest_api_timeout_in_ms=5000"]
    with Server(flags, tmp_path_factory.mktemp("attacked") / "server") as running:
        assert running.wait_for_ports(60), running.stderr.read_text()
        for _ in range(20):
            predict(running)
        memory, files = resident_mib(running.pid), descriptors(running.pid)
        yield running
        assert running.exit_code() is None
        assert predict(running) == [4.0]
        until(lambda: descriptors(running.pid) <= files + 5)
        assert resident_mib(running.pid) < memory + _KEPT_MIB
        log = running.stderr.read_text()  # where gRPC puts the traceback of what is no message
        assert log.count("Traceback") == log.count("Exception deserializing message!")


def connect(port: int, timeout: float = 20) -> socket.socket:
    return socket.create_connection(("localhost", port), timeout=timeout)


def post(server: Server, body: bytes, path: str = _PATH, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=60)
    with contextlib.closing(connection):
        connection.request(
            "POST", path, body, {key.replace("_", "-"): value for key, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()


_METHODS = [
    f"PredictionService/{name}"
    for name in ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata")
]
_METHODS.append("ModelService/GetModelStatus")


def answered(channel: grpc.Channel, method: str, data: bytes) -> tuple[str, str]:
    try:
        channel.unary_unary(f"/tensorflow.serving.{method}")(data, timeout=20)
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


# Clients that take their time


def test_slow_and_idle_clients_hold_nobody_up(server: Server) -> None:
    post = f"POST {_PATH} HTTP/1.1\r\n".encode()
    beginnings = [
        b"",
        post + b"Ho",
        post + b"A: b\r\n" * 50,
        post + b"Content-Length: 1000000\r\n\r\n{",
        post + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n{",
    ]
    with contextlib.ExitStack() as stack:
        for number in range(400):
            stack.enter_context(connect(server.rest_port)).sendall(beginnings[number % len(beginnings)])
        for number in range(200):
            stack.enter_context(connect(server.port)).sendall([b"", b"PRI * HTTP/2.0\r\n"][number % 2])
        ask = stack.enter_context(grpc.insecure_channel(f"localhost:{server.port}")).unary_unary(PREDICT)
        for _ in range(5):
            assert predict(server) == [4.0]
            ask(message(1).SerializeToString(), timeout=20)
    assert predict(server) == [4.0]


def test_a_request_that_drips_in_is_answered(server: Server) -> None:
    body = b'{"instances": [1.0]}'
    with connect(server.rest_port) as slow:
        for byte in b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (_PATH.encode(), len(body), body):
            slow.sendall(bytes([byte]))
            assert predict(server) == [4.0]
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")


def test_clients_that_never_read_hold_nobody_up(server: Server) -> None:
    body = json.dumps({"instances": [0.5] * 300_000}).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            deaf = stack.enter_context(connect(server.rest_port))
            deaf.sendall(
                b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (_PATH.encode(), len(body), body)
            )
        for _ in range(20):
            assert predict(server) == [4.0]


# Bodies that are too much


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused(models: Path, start: Callable[..., Server], chunked: bool) -> None:
    limited = start(model_name="m", model_base_path=models / "three", rest_api_max_body_bytes=_LIMIT)
    before = resident_mib(limited.pid)
    head = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000000000000"
    chunk = b"186a0\r\n" + b" " * 100_000 + b"\r\n" if chunked else b" " * 100_000
    with connect(limited.rest_port) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"POST %s HTTP/1.1\r\n%s\r\n\r\n" % (_PATH.encode(), head))
        for _ in range(5000):
            connection.sendall(chunk)
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                assert connection.recv(100).startswith(b"HTTP/1.1 413")
                break
            connection.settimeout(20)
        else:
            pytest.fail("took 500 MB")
    assert resident_mib(limited.pid) < before + 100
    assert predict(limited) == [4.0]


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        ("GET /v1/models/m HTTP/1.1\r\nA: ", "a"),
        ("GET /v1/models/m HTTP/1.1\r\n", "A: b\r\n"),
        ("GET /v1/models/", "a"),
        ("POST /v1/models/m:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;a=", "a"),
        ("POST /v1/models/m:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "A: b\r\n"),
    ],
    ids=["one header", "many headers", "target", "chunk extension", "trailers"],
)
def test_a_head_without_end_is_refused(server: Server, beginning: str, piece: str) -> None:
    before = resident_mib(server.pid)
    with connect(server.rest_port) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(beginning.encode())
        for _ in range(1000):
            connection.sendall(piece.encode() * (100_000 // len(piece)))
        pytest.fail("took 100 MB")
    assert resident_mib(server.pid) < before + _KEPT_MIB
    assert predict(server) == [4.0]


def test_a_gzip_bomb_costs_no_more_than_the_limit(server: Server) -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        for _ in range(512):
            file.write(b" " * (1 << 20))
    assert packed.tell() < 4 << 20
    before = resident_mib(server.pid)
    for _ in range(4):
        status, answer = post(server, packed.getvalue(), Content_Encoding="gzip")
        assert (status, json.loads(answer)) == (400, {"error": "JSON Parse error: The document is empty"})
    assert resident_mib(server.pid) < before + _KEPT_MIB
    assert predict(server) == [4.0]


_DEEP = 500_000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"unknown": %s, "instances": [1.0]}' % (b"[" * _DEEP + b"]" * _DEEP), 400),
        (b"[" * _DEEP + b"]" * _DEEP, 400),
        (b"[" * _DEEP, 400),
        (b'{"instances": %s1%s}' % (b"[" * _DEEP, b"]" * _DEEP), 400),
        (b'{"inputs": %s1%s}' % (b'{"x":' * _DEEP, b"}" * _DEEP), 400),
        (b'{"signature_name": %s}' % (b'{"x":' * _DEEP + b"1" + b"}" * _DEEP), 400),
    ],
    ids=["unknown key", "top", "unclosed", "instances", "inputs", "signature"],
)
def test_json_nested_half_a_million_deep(server: Server, body: bytes, status: int) -> None:
    assert post(server, body)[0] == status
    assert predict(server) == [4.0]


# Names that are paths


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models/../../../../etc/passwd",
        "/v1/models/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/models/%2e%2e/%2e%2e/etc/passwd:predict",
        "/v1/models/m/../../../etc/passwd",
        "/v1/models/m/versions/../../../etc/passwd",
        "/v1/models/m/labels/..%2f..%2fetc%2fpasswd/metadata",
        "/v1/models//etc/passwd",
        "//etc/passwd",
        "/../../etc/passwd",
        "/v1/models/m%00/versions/1",
        "/v1/models/..\\..\\windows",
    ],
)
def test_no_target_leads_to_a_file(server: Server, target: str) -> None:
    with connect(server.rest_port) as connection:
        connection.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split()[1] in (b"400", b"404")
    assert b"root:" not in answer


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "..", "m/3", "m\0", "a" * 100_000])
def test_no_name_leads_to_a_file(server: Server, name: str) -> None:
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        code, _ = answered(channel, _METHODS[0], message(1, name=name).SerializeToString())
    assert code == "NOT_FOUND"


# Bytes that are nothing


_LINES = [
    *(b"Content-Length: " + value for value in (b"5", b"-1", b"x", b"9" * 20)),
    *(b"Transfer-Encoding: " + value for value in (b"chunked", b"gzip")),
    *(b"Upgrade: " + value for value in (b"websocket", b"h2c")),
    b"Connection: upgrade",
    b"Content-Encoding: gzip",
    b"Expect: 100-continue",
    b"Host: a",
    b": b",
    b" folded",
    b"A: " + b"\xff" * 20,
    b"X" * 70000,
]
_GOOD = b'POST /v1/models/m:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n{"instances": [1.0]}'
_REQUESTS = st.tuples(
    st.sampled_from([b"GET", b"POST", b"PUT", b"BREW", b"", b"\0"]),
    st.sampled_from(
        [b"/v1/models/m", b"/v1/models/m:predict", b"*", b"//", b"http://", b"\xff", b"", b"/" * 9000]
    ),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/", b""]),
    st.lists(st.sampled_from(_LINES), max_size=4),
    st.binary(max_size=50)
    | st.just(b"5\r\n12345\r\n0\r\n\r\n")
    | st.just(b"-1\r\n")
    | st.just(gzip.compress(b"{")),
).map(
    lambda parts: (
        b" ".join(parts[:3]) + b"\r\n" + b"".join(h + b"\r\n" for h in parts[3]) + b"\r\n" + parts[4]
    )
)


@st.composite
def spoiled(draw: st.DrawFn, good: bytes) -> bytes:
    """A few bytes changed, taken out, put in or said twice."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 8)))
        data[start:stop] = draw(st.binary(max_size=8) | st.just(bytes(data[start:stop]) * 2))
    return bytes(data)


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300) | _REQUESTS | spoiled(_GOOD))
def test_no_bytes_on_the_rest_port_are_a_server_error(server: Server, data: bytes) -> None:
    answer = b""
    with connect(server.rest_port) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert not answer.startswith(b"HTTP/1.1 5") or answer.startswith(b"HTTP/1.1 501")
    with connect(server.rest_port) as connection:
        connection.sendall(b"GET /v1/models/m HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    unlimited = [("grpc.max_receive_message_length", -1)]  # a short message may stand for many zeros
    with grpc.insecure_channel(f"localhost:{server.port}", unlimited) as connected:
        yield connected


def refused_at_worst(channel: grpc.Channel, method: str, data: bytes) -> None:
    """Bytes that are no message are INTERNAL (gRPC's own answer); a message is never worse than refused."""
    code, details = answered(channel, method, data)
    assert code in {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE"} or (
        code == "INTERNAL" and "deserializing" in details
    ), (code, details)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_tensor_is_an_unknown_error(channel: grpc.Channel, data: st.DataObject) -> None:
    request = message(*data.draw(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=4)))
    request.inputs["x"].dtype = data.draw(st.sampled_from([0, 1, 3, 7, 20, 23, 101]))
    request.inputs["x"].tensor_content = data.draw(st.binary(max_size=16))
    whole = request.SerializeToString()
    refused_at_worst(channel, _METHODS[0], data.draw(st.just(whole) | spoiled(whole)))
    assert answered(channel, _METHODS[0], message(1).SerializeToString())[0] == "OK"


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.binary(max_size=100) | spoiled(message(1).SerializeToString()), method=st.sampled_from(_METHODS)
)
def test_no_message_is_an_unknown_error(channel: grpc.Channel, data: bytes, method: str) -> None:
    refused_at_worst(channel, method, data)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.binary(max_size=200) | st.binary(max_size=200).map(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".__add__)
)
def test_no_bytes_on_the_grpc_port_disturb_the_others(
    server: Server, channel: grpc.Channel, data: bytes
) -> None:
    with connect(server.port) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(65536)
    assert answered(channel, _METHODS[0], message(1).SerializeToString())[0] == "OK"


def test_what_gzip_leaves_unfinished_is_an_empty_body(server: Server) -> None:
    whole = gzip.compress(b'{"instances": [1.0]}')
    assert post(server, whole, Content_Encoding="gzip")[0] == 200
    for broken in (whole[:-1], whole + b"x", whole * 2, whole[:-8] + bytes(8), zlib.compress(b"{}"), b"{}"):
        assert post(server, broken, Content_Encoding="gzip")[0] == 400
