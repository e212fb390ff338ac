"""Refusals of a busy server are waited out within the timeout, and a client bounds what it sends at once."""

import asyncio
import concurrent.futures
import threading
import time

import numpy as np
import pytest
from tensorflow_serving.apis import get_model_status_pb2

from keras_bn_serving.client import AsyncClient, Client
from keras_bn_serving.wire.errors import (
    DeadlineExceededError,
    ResourceExhaustedError,
    ServingError,
    UnavailableError,
)
from tests.serving.client.fakes import EchoServer, grpc_server, http
from tests.serving.client.test_operations import MODEL, Script, operations

BUSY = b'{"error": "Server Threadpool Exhausted"}'
READY = "ready"


@pytest.fixture
def echo():
    server = EchoServer()
    yield server
    server.close()


def test_refusals_are_waited_out_with_growing_pauses_whatever_the_number_of_retries():
    script = Script([ResourceExhaustedError("Server Threadpool Exhausted")] * 8 + [READY])
    assert script.run(operations(retries=1).status(MODEL, 60.0)) == READY
    for attempt, pause in enumerate(script.pauses):
        base = min(0.05 * 2**attempt, 2.0)
        assert 0.5 * base <= pause <= 1.5 * base
    assert len(set(script.pauses)) == 8  # each has its own jitter


def test_no_retry_is_no_retry():
    with pytest.raises(ResourceExhaustedError):
        Script([ResourceExhaustedError("busy")]).run(operations(retries=0).status(MODEL, 60.0))


@pytest.mark.parametrize(
    "words",
    [
        "Received message larger than max (5 vs. 4)",
        "OOM when allocating tensor with shape[1]",
        "received metadata size exceeds hard limit",
        "the server answered HTTP 413 with no text",
    ],
)
def test_what_is_too_much_at_any_time_is_not_tried_again(words):
    with pytest.raises(ResourceExhaustedError):
        Script([ResourceExhaustedError(words)]).run(operations().status(MODEL, 60.0))


def test_the_server_says_how_long_to_wait():
    error = UnavailableError("later")
    error.retry_after = 3.0
    script = Script([error, error, error, READY])
    assert script.run(operations(retries=1).status(MODEL, 60.0)) == READY
    assert script.pauses == [3.0] * 3
    script = Script([error])
    with pytest.raises(
        UnavailableError, match=r"later \(the server asks to be tried again after 3 s"
    ) as caught:
        script.run(operations().status(MODEL, 2.0))
    assert caught.value.retry_after == 3.0
    assert not script.pauses  # no use in waiting


def test_a_full_queue_is_overload():
    full = UnavailableError(
        "The batch scheduling queue to which this task was submitted is full; currently 1"
    )
    assert Script([full] * 6 + [READY]).run(operations(retries=1).status(MODEL, 60.0)) == READY


@pytest.mark.parametrize(
    ("status", "header", "code", "seconds"),
    [
        (429, "Retry-After: 0", "RESOURCE_EXHAUSTED", 0.0),
        (503, "Retry-After: 7", "UNAVAILABLE", 7.0),
        (503, "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", "UNAVAILABLE", 0.0),
        (503, "Retry-After: soon", "UNAVAILABLE", None),
        (500, "Retry-After: 7", "INTERNAL", None),
        (429, "X: y", "RESOURCE_EXHAUSTED", None),
    ],
)
def test_retry_after_is_read(echo, status, header, code, seconds):
    echo.refusals = [http(status, BUSY, header)]
    with (
        Client(f"http://127.0.0.1:{echo.port}", "m", retries=0) as client,
        pytest.raises(ServingError, match="Server Threadpool Exhausted") as caught,
    ):
        client.predict([1.0])
    assert (caught.value.code, caught.value.retry_after) == (code, seconds)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_retry_after_is_honoured(echo, asynchronous):
    echo.refusals = [http(429, BUSY, "Retry-After: 1"), http(503, BUSY, "Retry-After: 0")]
    address, started = f"http://127.0.0.1:{echo.port}", time.monotonic()
    if asynchronous:
        assert asyncio.run(AsyncClient(address, "m").predict([1.0])).tolist() == [1.0]
    else:
        with Client(address, "m") as client:
            assert client.predict([1.0]).tolist() == [1.0]
    assert time.monotonic() - started >= 1.0
    assert not echo.refusals


def test_grpc_calls_together_survive_a_server_that_refuses_beyond_a_few():
    """As tensorflow_model_server does above grpc_max_threads; without waiting, most of 32 are lost."""

    def answer(request, context):
        time.sleep(0.02)
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.add(version=1, state=30).status.error_code = 0
        return response.SerializeToString()

    def ask_in_threads(address, **options):
        with (
            Client(address, timeout=60, **options) as client,
            concurrent.futures.ThreadPoolExecutor(32) as pool,
        ):
            return list(pool.map(lambda _: client.status(), range(32)))

    async def ask_in_tasks(address):
        async with AsyncClient(address, timeout=60) as client:
            return await asyncio.gather(*(client.status() for _ in range(32)))

    limits = {"service": "ModelService", "method": "GetModelStatus", "maximum_concurrent_rpcs": 4}
    with grpc_server(answer, **limits) as port:
        address = f"grpc://127.0.0.1:{port}"
        with pytest.raises(ResourceExhaustedError):
            ask_in_threads(address, retries=0)
        assert len(ask_in_threads(address)) == 32
        assert len(asyncio.run(ask_in_tasks(address))) == 32


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_a_client_bounds_what_is_in_flight(asynchronous):
    server = EchoServer(pause=0.01)
    address = f"http://127.0.0.1:{server.port}"
    if asynchronous:

        async def together():
            async with AsyncClient(address, "m", max_in_flight=3, timeout=60) as client:
                return await asyncio.gather(*(client.predict([i]) for i in range(30)))

        answers = asyncio.run(together())
    else:
        with (
            Client(address, "m", max_in_flight=3, timeout=60) as client,
            concurrent.futures.ThreadPoolExecutor(30) as pool,
        ):
            answers = list(pool.map(lambda i: client.predict([i]), range(30)))
    np.testing.assert_array_equal(answers, np.arange(30).reshape(30, 1))
    assert server.busiest == 3
    assert server.connections == 3
    server.close()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_waiting_for_a_turn_ends_at_the_timeout(asynchronous):
    server = EchoServer(pause=1.0)
    address, words = f"http://127.0.0.1:{server.port}", "as many as max_in_flight= allows"
    if asynchronous:

        async def together():
            async with AsyncClient(address, "m", max_in_flight=1, timeout=30) as client:
                slow = asyncio.create_task(client.status())
                await asyncio.sleep(0)
                with pytest.raises(DeadlineExceededError, match=words):
                    await client.metadata(timeout=0.1)
                slow.cancel()

        asyncio.run(together())
    else:
        with Client(address, "m", max_in_flight=1, timeout=30) as client:
            slow = threading.Thread(target=lambda: client.metadata())
            slow.start()
            while not server.busiest:
                time.sleep(0.001)
            with pytest.raises(DeadlineExceededError, match=words):
                client.metadata(timeout=0.1)
            slow.join()
    server.close()
