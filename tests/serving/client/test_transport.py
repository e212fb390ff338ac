"""The wire: odd answers, deadlines, retries, TLS, headers, sockets and proxies, against small servers."""

import asyncio
import concurrent.futures
import http.server
import socket
import ssl
import threading
import time

import grpc
import pytest
from tensorflow_serving.apis import get_model_status_pb2

from keras_bn_serving.client import AsyncClient, Client, VersionStatus
from keras_bn_serving.client.endpoint import parse_address
from keras_bn_serving.wire.errors import (
    BY_CODE,
    DeadlineExceededError,
    InvalidArgumentError,
    ServingError,
    UnavailableError,
)

STATUS = b"""{"model_version_status": [
    {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]}"""
READY = [VersionStatus(1, "AVAILABLE")]


class HttpServer:
    """Gives `answers` in turn, the last for ever: (status, body), or a function of the handler."""

    def __init__(self):
        self.answers, self.headers, self.connections = [(200, STATUS)], [], set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.headers.append(dict(self.headers))
                outer.connections.add(self.client_address)
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if callable(answer):
                    return answer(self)
                status, body = answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def web():
    running = HttpServer()
    yield running
    running.server.shutdown()
    running.server.server_close()


def ask(address, asynchronous, **options):
    """The status, asked by either client."""
    if not asynchronous:
        with Client(address, **options) as client:
            return client.status()

    async def ask_async():
        async with AsyncClient(address, **options) as client:
            return await client.status()

    return asyncio.run(ask_async())


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])


@both
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_ARGUMENT"), (401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"), (404, "NOT_FOUND"),
        (409, "ABORTED"), (429, "RESOURCE_EXHAUSTED"), (499, "CANCELLED"), (500, "INTERNAL"),
        (501, "UNIMPLEMENTED"), (503, "UNAVAILABLE"), (504, "DEADLINE_EXCEEDED"), (418, "UNKNOWN"),
    ],
)  # fmt: skip
def test_http_statuses_are_the_canonical_errors(web, status, code, asynchronous):
    web.answers = [(status, b'{\n    "error": "the server\'s words"\n}')]
    with pytest.raises(BY_CODE[code], match=r"^the server's words$") as caught:
        ask(f"http://localhost:{web.port}", asynchronous, retries=0)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"<html>Bad</html>", "<html>Bad</html>"), (b"", "HTTP 502 with no text"), (b"[1]", r"\[1\]")],
)
def test_an_error_that_is_not_tf_servings_is_shown_as_it_is(web, body, words):
    web.answers = [(502, body)]
    with pytest.raises(UnavailableError, match=words):
        ask(f"http://localhost:{web.port}", False, retries=0)


@both
def test_an_overloaded_server_is_asked_again_on_the_same_connection(web, asynchronous):
    web.answers = [(503, b'{"error": "queue full"}'), (503, b'{"error": "queue full"}'), (200, STATUS)]
    assert ask(f"http://localhost:{web.port}", asynchronous) == READY
    assert len(web.headers) == 3
    assert len(web.connections) == 1


@both
def test_a_connection_that_the_server_dropped_is_opened_again(web, asynchronous):
    def drop(handler):
        handler.close_connection = True  # with no answer at all

    web.answers = [drop, (200, STATUS)]
    assert ask(f"http://localhost:{web.port}", asynchronous) == READY


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(200):
        try:
            handler.wfile.write(b" ")
        except OSError:  # the client has gone, as it should
            return
        time.sleep(0.02)


@both
def test_the_deadline_ends_even_a_steady_drip(web, asynchronous):
    web.answers = [drip]
    with pytest.raises(DeadlineExceededError, match=r"no answer from http://localhost:\d+ within 0\.\d+ s"):
        ask(f"http://localhost:{web.port}", asynchronous, timeout=0.2)
    assert len(web.headers) == 1  # and it is not tried again


@both
def test_silence_ends_at_the_deadline(asynchronous):
    with socket.create_server(("localhost", 0)) as listener:
        for scheme in ("http", "grpc"):
            with pytest.raises(DeadlineExceededError):
                ask(f"{scheme}://localhost:{listener.getsockname()[1]}", asynchronous, timeout=0.3)


@both
def test_headers_are_sent_and_the_prefix_is_kept(web, asynchronous):
    ask(f"http://localhost:{web.port}/prefix", asynchronous, headers={"Authorization": "Bearer t"})
    assert web.headers[0]["Authorization"] == "Bearer t"


def test_no_proxy_for_this_machine(web, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://proxy.invalid:1")
    monkeypatch.delenv("no_proxy", raising=False)
    for host in ("localhost", "127.0.0.1"):
        assert ask(f"http://{host}:{web.port}", False) == READY


def test_the_environments_proxy_for_other_machines(web, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://localhost:{web.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask("http://models.invalid:8501", False) == READY  # the proxy answers for it


def test_loopback_is_recognised():
    for address, loopback in [
        ("http://localhost:1", True), ("grpc://127.0.0.2:1", True), ("grpc://[::1]:1", True),
        ("unix:/run/s", True), ("http://models.localhost", True), ("http://192.168.0.1", False),
        ("http://example.com", False),
    ]:  # fmt: skip
        assert parse_address(address).is_loopback is loopback, address


# gRPC, with TF Serving's own messages on the other side.


def grpc_server(answer, bind):
    handlers = grpc.method_handlers_generic_handler(
        "tensorflow.serving.ModelService", {"GetModelStatus": grpc.unary_unary_rpc_method_handler(answer)}
    )
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handlers,))
    port = bind(server)
    server.start()
    return server, port


def available(request, context):
    response = get_model_status_pb2.GetModelStatusResponse()
    response.model_version_status.add(version=1, state=30).status.error_code = 0
    return response.SerializeToString()


@both
def test_every_grpc_code_is_its_error(asynchronous):
    codes = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
    asked = iter(codes)
    server, port = grpc_server(
        lambda request, context: context.abort(next(asked), "the server's words"),
        lambda server: server.add_insecure_port("localhost:0"),
    )
    for code in codes:
        with pytest.raises(ServingError, match=r"^the server's words$") as caught:
            ask(f"grpc://localhost:{port}", asynchronous, retries=0)
        assert type(caught.value) is BY_CODE[code.name]
        assert caught.value.code == code.name
    server.stop(None)


@both
def test_grpc_metadata_and_retries(asynchronous):
    seen = []

    def answer(request, context):
        seen.append(dict(context.invocation_metadata()))
        if len(seen) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        return available(request, context)

    server, port = grpc_server(answer, lambda server: server.add_insecure_port("localhost:0"))
    assert ask(f"grpc://localhost:{port}", asynchronous, headers={"Authorization": "Bearer t"}) == READY
    assert [entry["authorization"] for entry in seen] == ["Bearer t"] * 3
    server.stop(None)


def test_an_async_client_may_be_made_before_the_loop_runs():
    server, port = grpc_server(available, lambda server: server.add_insecure_port("localhost:0"))
    client = AsyncClient(f"grpc://localhost:{port}")

    async def ask_and_close():
        status = await client.status()
        await client.close()
        return status

    assert asyncio.run(ask_and_close()) == READY
    server.stop(None)


@both
def test_a_unix_socket(tmp_path_factory, asynchronous):
    path = tmp_path_factory.mktemp("s") / "s"  # short: the system allows 107 characters
    server, _ = grpc_server(available, lambda server: server.add_insecure_port(f"unix:{path}"))
    assert ask(f"unix:{path}", asynchronous) == READY
    server.stop(None)


# TLS


@both
def test_tls_and_mutual_tls_over_rest(web, certificates, asynchronous):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    web.server.socket = context.wrap_socket(web.server.socket, server_side=True)
    address = f"https://localhost:{web.port}"
    trusted = {"ca": certificates / "ca.pem"}
    mine = {"cert": str(certificates / "client.pem"), "key": str(certificates / "client.key")}
    assert ask(address, asynchronous, **trusted, **mine) == READY
    with pytest.raises(UnavailableError, match="certificate verify failed"):
        ask(address, asynchronous, retries=0, **mine)
    with pytest.raises(UnavailableError):
        ask(address, asynchronous, retries=0, **trusted)  # the server wants to know who is asking


@both
def test_tls_and_mutual_tls_over_grpc(certificates, asynchronous):
    read = {name: (certificates / name).read_bytes() for name in ("ca.pem", "server.pem", "server.key")}
    credentials = grpc.ssl_server_credentials(
        [(read["server.key"], read["server.pem"])], read["ca.pem"], True
    )
    server, port = grpc_server(available, lambda server: server.add_secure_port("localhost:0", credentials))
    address = f"grpcs://localhost:{port}"
    trusted = {"ca": certificates / "ca.pem"}
    mine = {"cert": str(certificates / "client.pem"), "key": str(certificates / "client.key")}
    assert ask(address, asynchronous, **trusted, **mine) == READY
    for wrong in (mine, trusted):
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            ask(address, asynchronous, retries=0, timeout=2, **wrong)
    server.stop(None)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_tls_files_that_are_missing(scheme, tmp_path):
    with pytest.raises(InvalidArgumentError, match="the TLS files cannot be"):
        Client(f"{scheme}://localhost:1", ca=tmp_path / "none.pem")
