"""A client in forked processes, in other event loops, and as a copy: each has connections of its own."""

import asyncio
import copy
import pickle
import threading
import time

import numpy as np
import pytest

from keras_bn_serving.client import AsyncClient, Client
from keras_bn_serving.client.testing import FakeClient, FakeModel
from keras_bn_serving.wire.errors import FailedPreconditionError, InvalidArgumentError, ServingError
from tests.serving.client.fakes import grpc_server, in_children, raw_server
from tests.serving.client.test_testing import MODELS

X = np.float32([[1, 2, 3]])


def ask(client, number, calls=30):
    """Each answer belongs to its question, whoever else is asking."""
    for call in range(calls):
        x = X + 1000 * number + call
        np.testing.assert_array_equal(client.predict(x), x * 3)


async def ask_together(client, number, calls=30):
    xs = [X + 1000 * number + call for call in range(calls)]
    answers = await asyncio.gather(*(client.predict(x) for x in xs))
    np.testing.assert_array_equal(answers, [x * 3 for x in xs])


def test_children_do_not_read_each_others_answers(address):
    with Client(address, "affine", timeout=60) as client:
        ask(client, 0, 1)  # a connection is there, and the metadata known
        codes = []
        parent = threading.Thread(target=lambda: codes.extend(in_children(lambda n: ask(client, n + 1))))
        parent.start()
        parent.join()
        assert codes == [0] * 4
        ask(client, 9)  # the parent's connections are as they were


def test_forks_while_other_threads_ask(address):
    """What gRPC does not support by itself: without waiting, one child in ten crashes or hangs."""
    with Client(address, "affine", timeout=60) as client:
        ask(client, 0, 1)
        ended, failures = threading.Event(), []

        def keep_asking(number):
            try:
                while not ended.is_set():
                    ask(client, number, 5)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=keep_asking, args=[number]) for number in (20, 21)]
        for thread in threads:
            thread.start()
        codes = [in_children(lambda number: ask(client, number + 1, 5), count=3) for _ in range(5)]
        ended.set()
        for thread in threads:
            thread.join()
        assert codes == [[0] * 3] * 5
        assert failures == []


def test_grandchildren(address):
    with Client(address, "affine", timeout=60) as client:
        ask(client, 0, 1)

        def child(number):
            ask(client, number + 1, 3)
            assert in_children(lambda inner: ask(client, 10 + inner, 3), count=2) == [0, 0]

        assert in_children(child, count=2) == [0, 0]


def test_children_of_an_async_client(address):
    client = AsyncClient(address, "affine", timeout=60)
    asyncio.run(ask_together(client, 0))
    assert in_children(lambda number: asyncio.run(ask_together(client, number + 1))) == [0] * 4
    asyncio.run(ask_together(client, 9))

    async def close():
        await client.close()

    asyncio.run(close())


def test_closing_in_a_child_leaves_the_parents_connections_open(address):
    with Client(address, "affine", timeout=60) as client:
        ask(client, 0, 1)
        assert in_children(lambda _: client.close(), count=2) == [0, 0]
        ask(client, 1)


def test_one_async_client_in_one_event_loop_after_another_and_in_two_at_once(address):
    client = AsyncClient(address, "affine", timeout=60)
    for number in range(3):
        asyncio.run(ask_together(client, number))
    threads = [
        threading.Thread(target=lambda n=number: results.append(asyncio.run(ask_together(client, n))))
        for number in range(2)
    ]
    results: list[None] = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [None, None]


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda client: pickle.loads(pickle.dumps(client))]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_copy_has_the_settings_and_not_the_connections(address, kind, duplicate):
    settings = {"model": "affine", "timeout": 60.0, "retries": 5, "max_in_flight": 3, "compress": True}
    client = kind(address, **settings, headers={"a": "b"}, check_shapes=False)
    client.model = "many"  # as it is now, not as it was made
    twin = duplicate(client)
    assert twin.__getstate__() == client.__getstate__()
    assert twin.model == "many"
    with pytest.raises(InvalidArgumentError, match="wants a: int32"):
        run(twin.predict(X))
    run(client.close())
    run(twin.metadata())  # is open still
    run(twin.close())


def run(result):
    """What a method of either client returns."""

    async def wait():
        return await result

    return asyncio.run(wait()) if hasattr(result, "__await__") else result


def test_an_injected_transport_is_copied_too():
    twin = pickle.loads(pickle.dumps(FakeClient(MODELS, "double")))
    assert twin.predict([1, 2], outputs="y").tolist() == [2, 4]
    assert copy.copy(FakeClient({"m": FakeModel(MODELS["double"].signature, abs)}, "m")).model == "m"


def test_a_closed_client_says_so(address):
    client = Client(address, "affine", timeout=60)
    ask(client, 0, 1)
    client.close()
    client.close()
    calls = [client.status, client.metadata, client.wait_until_ready, lambda: client.predict(X)]
    calls += [lambda: client.classify({"x": 1}), lambda: client.reload({}), client.__enter__]
    for call in calls:
        with pytest.raises(FailedPreconditionError, match="this client is closed: make another"):
            call()


def test_a_closed_async_client_says_so(address):
    async def closed():
        client = AsyncClient(address, "affine", timeout=60)
        await ask_together(client, 0, 3)
        await client.close()
        await client.close()
        for call in (client.status(), client.predict(X), client.__aenter__()):
            with pytest.raises(FailedPreconditionError, match="this client is closed: make another"):
                await call

    asyncio.run(closed())


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_closing_ends_the_calls_in_flight(kind):
    """At once, with an error, and no connection is opened again for another attempt."""
    started = threading.Barrier(5)

    def never(*_):
        started.wait()
        time.sleep(3)
        raise ConnectionError

    serve = raw_server(never) if kind == "http" else grpc_server(never, "ModelService", "GetModelStatus")
    with serve as port:
        address = f"{kind}://127.0.0.1:{port}"
        client, errors = Client(address, timeout=30), []

        def ask():
            try:
                client.status()
            except ServingError as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        client.close()
        for thread in threads:
            thread.join(2)
        assert [type(error) for error in errors] == [FailedPreconditionError] * 4

        async def ask_and_close():
            client = AsyncClient(address, timeout=30)
            calls = [asyncio.create_task(client.status()) for _ in range(4)]
            await asyncio.get_running_loop().run_in_executor(None, started.wait)
            await client.close()
            return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 2)

        errors = asyncio.run(ask_and_close())
        assert [type(error) for error in errors] == [FailedPreconditionError] * 4
