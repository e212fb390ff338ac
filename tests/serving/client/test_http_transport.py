"""HTTP on the wire: deadlines that end every wait, connections that are kept, proxies, odd answers."""

import asyncio
import base64
import concurrent.futures
import contextlib
import socket
import ssl
import threading
import time

import numpy as np
import pytest

from keras_bn_serving.client import AsyncClient, Client
from keras_bn_serving.client.endpoint import parse_address
from keras_bn_serving.client.http_messages import route
from keras_bn_serving.wire.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ServingError,
    UnavailableError,
)
from tests.serving.client.fakes import METADATA, EchoServer, http, raw_server

both = pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])


@pytest.fixture
def echo():
    server = EchoServer()
    yield server
    server.close()


def predict(address, asynchronous, x=(1.0,), **options):
    """A prediction by either client."""
    if not asynchronous:
        with Client(address, "m", **options) as client:
            return client.predict(list(x)).tolist()

    async def ask():
        async with AsyncClient(address, "m", **options) as client:
            return (await client.predict(list(x))).tolist()

    return asyncio.run(ask())


def read_head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(65536)
        if not data:
            raise ConnectionError
        head += data
    return head


def drip(connection: socket.socket, data: bytes) -> None:
    for index in range(len(data)):
        connection.sendall(data[index : index + 1])
        time.sleep(0.02)


ANSWER = http(200, METADATA)
DRIPS = {
    "head": lambda connection: (read_head(connection), drip(connection, ANSWER)),
    "endless head": lambda connection: (
        read_head(connection),
        drip(connection, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000),
    ),
    "body": lambda connection: (
        read_head(connection),
        connection.sendall(ANSWER[:-50]),
        drip(connection, ANSWER[-50:] * 10),
    ),
    "informational answers": lambda connection: (
        read_head(connection),
        drip(connection, b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    ),
    "chunks": lambda connection: (
        read_head(connection),
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        drip(connection, b"1\r\n \r\n" * 1000),
    ),
    "silence": lambda connection: time.sleep(5),
    "upload": lambda connection: [(connection.recv(1), time.sleep(0.02)) for _ in range(250)],
}


@both
@pytest.mark.parametrize("what", DRIPS)
def test_the_timeout_ends_every_wait(what, asynchronous):
    body = {"x": 1.0, "y": ["x" * 1000] * 20_000} if what == "upload" else {"x": 1.0}
    with raw_server(DRIPS[what]) as port:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError, match=r"no answer from http://127.0.0.1:\d+ within"):
            classify(f"http://127.0.0.1:{port}", asynchronous, body)
        assert time.monotonic() - started < 4.0  # and not the five seconds and more of the server


def classify(address, asynchronous, example):
    if not asynchronous:
        with Client(address, timeout=0.4) as client:
            return client.classify(example)

    async def ask():
        async with AsyncClient(address, timeout=0.4) as client:
            return await client.classify(example)

    return asyncio.run(ask())


def test_the_timeout_ends_a_look_up_of_a_name(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: done.wait(10) and [])
    with Client("http://models.invalid:1", timeout=0.2) as client, pytest.raises(DeadlineExceededError):
        client.status()
    done.set()


@both
def test_the_timeout_ends_a_tls_handshake(asynchronous):
    with raw_server(lambda connection: time.sleep(5)) as port, pytest.raises(DeadlineExceededError):
        predict(f"https://localhost:{port}", asynchronous, timeout=0.3)


def test_a_fresh_async_client_fetches_the_metadata_once_for_all_and_keeps_few_connections(echo):
    async def together(count):
        async with AsyncClient(f"http://127.0.0.1:{echo.port}", "m", timeout=60) as client:
            answers = await asyncio.gather(*(client.predict([i]) for i in range(count)))
            np.testing.assert_array_equal(answers, np.arange(count).reshape(count, 1))

    asyncio.run(together(400))
    assert (echo.metadata, echo.predictions) == (1, 400)
    assert echo.connections <= 32


def test_threads_fetch_the_metadata_once_for_all():
    echo = EchoServer(pause=0.05)  # long enough for all to have asked
    with Client(f"http://127.0.0.1:{echo.port}", "m", timeout=60) as client:
        start = threading.Barrier(16)

        def ask(number):
            start.wait()
            return client.predict([number])[0]

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert list(pool.map(ask, range(16))) == list(range(16))
    assert echo.metadata == 1
    echo.close()


@both
def test_a_failed_fetch_of_metadata_fails_for_all_and_is_not_kept(asynchronous):
    asked = []

    def talk(connection):
        while True:
            head = read_head(connection)
            asked.append(head)
            time.sleep(0.05)
            fails = len(asked) == 1
            connection.sendall(http(404, b'{"error": "no such model"}') if fails else ANSWER)

    with raw_server(talk) as port:
        address = f"http://127.0.0.1:{port}"
        if asynchronous:

            async def together():
                async with AsyncClient(address, "m") as client:
                    calls = (client.predict([i]) for i in range(8))
                    failed = await asyncio.gather(*calls, return_exceptions=True)
                    assert len(asked) == 1
                    with pytest.raises(InvalidArgumentError, match="no signature 'other'"):
                        await client.predict([1.0], "other")
                    return failed

            failed = asyncio.run(together())
        else:
            with Client(address, "m") as client:

                def ask(number):
                    try:
                        return client.predict([number])
                    except ServingError as error:
                        return error

                with concurrent.futures.ThreadPoolExecutor(8) as pool:
                    failed = list(pool.map(ask, range(8)))
                with pytest.raises(InvalidArgumentError, match="no signature 'other'"):
                    client.predict([1.0], "other")
    assert all(isinstance(error, NotFoundError) for error in failed if isinstance(error, Exception))
    assert len({id(error) for error in failed}) == 8  # each has its own, whose traceback is its own


def test_one_who_gives_up_waiting_for_metadata_takes_nobody_along():
    echo = EchoServer(pause=0.2)

    async def together():
        async with AsyncClient(f"http://127.0.0.1:{echo.port}", "m", timeout=60) as client:
            first = asyncio.create_task(client.predict([1.0]))  # asks for the metadata, for all
            await asyncio.sleep(0)
            impatient = asyncio.create_task(client.predict([2.0], timeout=0.05))
            patient = asyncio.create_task(client.predict([3.0]))
            with pytest.raises(DeadlineExceededError):
                await impatient
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first
            return (await patient).tolist()

    assert asyncio.run(together()) == [3.0]
    echo.close()


def test_a_cancelled_task_leaves_no_answer_for_the_next():
    echo = EchoServer(pause=0.05)

    async def together():
        async with AsyncClient(f"http://127.0.0.1:{echo.port}", "m", timeout=60, max_in_flight=1) as client:
            await client.predict([0.0])
            for number in range(5):
                task = asyncio.create_task(client.predict([float(number)]))
                await asyncio.sleep(0.02)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                assert (await client.predict([number + 100.0])).tolist() == [number + 100.0]

    asyncio.run(together())
    echo.close()


@both
def test_connections_are_kept_and_one_that_the_server_closed_is_not_used(asynchronous):
    connections = []

    def talk(connection):
        connections.append(connection)
        for _ in range(2):
            read_head(connection)
            connection.sendall(ANSWER)

    with raw_server(talk) as port:
        address = f"http://127.0.0.1:{port}"
        if asynchronous:

            async def ask():
                async with AsyncClient(address, "m", retries=0) as client:
                    for _ in range(6):
                        await client.metadata()
                        await asyncio.sleep(0.05)

            asyncio.run(ask())
        else:
            with Client(address, "m", retries=0) as client:
                for _ in range(6):
                    client.metadata()
                    time.sleep(0.05)
    assert len(connections) == 3


@both
def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next(asynchronous):
    other = METADATA.replace(b'"name": "m"', b'"name": "other"')

    def talk(connection):
        read_head(connection)
        connection.sendall(ANSWER + http(200, other))  # two answers to one request
        read_head(connection)

    names = []
    with raw_server(talk) as port:
        if asynchronous:

            async def ask():
                async with AsyncClient(f"http://127.0.0.1:{port}", "m") as client:
                    names.extend([(await client.metadata()).name for _ in range(3)])

            asyncio.run(ask())
        else:
            with Client(f"http://127.0.0.1:{port}", "m") as client:
                names.extend(client.metadata().name for _ in range(3))
    assert names == ["m"] * 3


@both
def test_a_refusal_before_the_body_was_read_is_read(asynchronous):
    def talk(connection):
        connection.recv(1000)
        connection.sendall(http(413, b'{"error": "too much for me"}', "Connection: close"))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    with raw_server(talk) as port, pytest.raises(ServingError, match="too much for me") as caught:
        classify_big(f"http://127.0.0.1:{port}", asynchronous)
    assert caught.value.code == "RESOURCE_EXHAUSTED"


def classify_big(address, asynchronous):
    example = {"x": ["y" * 1000] * 5000}
    if not asynchronous:
        with Client(address) as client:
            return client.classify(example)

    async def ask():
        async with AsyncClient(address) as client:
            return await client.classify(example)

    return asyncio.run(ask())


@both
@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"", UnavailableError, "the server closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", UnavailableError, "no answer from"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n", UnavailableError, "is this the REST port"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", UnavailableError, "is this the REST port"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000, UnavailableError, "is this the REST port"),
        (
            http(308, b"", "Location: https://models.example/"),
            ServingError,
            "points to https://models.example/",
        ),
        (http(200, b"<html>"), InternalError, "not JSON"),
        (http(200, b'{"outputs": null}'), InternalError, "has no 'model_spec'"),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", InternalError, "has no 'model_spec'"),
    ],
)
def test_odd_answers(answer, kind, words, asynchronous):
    def talk(connection):
        read_head(connection)
        connection.sendall(answer)

    with raw_server(talk) as port, pytest.raises(kind, match=words):
        predict(f"http://127.0.0.1:{port}", asynchronous, timeout=20, retries=0)


def test_an_international_host_name_is_encoded():
    assert parse_address("http://m\u00fcller.example:1").host == "xn--mller-kva.example"
    assert parse_address("grpc://m\u00fcller.example:1").host == "xn--mller-kva.example"
    with pytest.raises(InvalidArgumentError, match="is not a URL"):
        parse_address("http://" + "\u00fc" * 100)


# Proxies


def test_a_proxy_with_a_user_is_asked_with_the_whole_url(echo, monkeypatch):
    heads = []

    def talk(connection):
        heads.append(read_head(connection))
        connection.sendall(ANSWER)

    with raw_server(talk) as port:
        monkeypatch.setenv("http_proxy", f"http://us%40er:pass@localhost:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        with Client("http://models.invalid:8501/prefix", "m") as client:
            client.metadata()
    assert heads[0].startswith(b"GET http://models.invalid:8501/prefix/v1/models/m/metadata HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"us@er:pass") in heads[0]
    assert b"\r\nHost: models.invalid:8501\r\n" in heads[0]


@both
def test_https_goes_through_a_tunnel(monkeypatch, certificates, asynchronous):
    heads = []

    def talk(connection):
        heads.append(read_head(connection))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        with context.wrap_socket(connection, server_side=True) as secured:
            heads.append(read_head(secured))
            secured.sendall(ANSWER)
            read_head(secured)

    with raw_server(talk) as port:
        monkeypatch.setenv("https_proxy", f"localhost:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        # The certificate is for localhost, and so is this name, in a form that is not taken for this machine.
        monkeypatch.setattr("keras_bn_serving.client.endpoint.Endpoint.is_loopback", False)
        monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: False)
        options = {"ca": certificates / "ca.pem", "timeout": 20}
        if asynchronous:

            async def ask():
                async with AsyncClient("https://localhost", "m", **options) as client:
                    return await client.metadata()

            found = asyncio.run(ask())
        else:
            with Client("https://localhost", "m", **options) as client:
                found = client.metadata()
    assert found.name == "m"
    assert heads[0].startswith(b"CONNECT localhost:443 HTTP/1.1\r\n")
    assert heads[1].startswith(b"GET /v1/models/m/metadata HTTP/1.1\r\n")


@both
def test_a_proxy_that_refuses_the_tunnel(monkeypatch, asynchronous):
    def talk(connection):
        read_head(connection)
        connection.sendall(http(407, b"", "Connection: close"))

    with raw_server(talk) as port:
        monkeypatch.setenv("https_proxy", f"http://localhost:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(UnavailableError, match=r"the proxy localhost:\d+ answered HTTP 407 to CONNECT"):
            predict("https://models.invalid", asynchronous, timeout=20, retries=0)


@pytest.mark.parametrize(
    "url", ["socks5://localhost:1", "https://localhost:1", "http://[", "http://h:port", "ftp://h"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_proxy_that_cannot_be_used_says_what_to_change(url, kind, monkeypatch):
    monkeypatch.setenv("http_proxy", url)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(InvalidArgumentError, match=r"the proxy .*correct the variable http_proxy, or put"):
        kind("http://models.invalid:8501")
    kind("http://localhost:8501")  # which needs none
    monkeypatch.setenv("no_proxy", "models.invalid")  # the advice works
    assert route(parse_address("http://models.invalid:8501")).host == "models.invalid"
