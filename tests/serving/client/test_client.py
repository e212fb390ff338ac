"""The client against the local server: every test over REST and over gRPC."""

import asyncio
import concurrent.futures
import contextlib
import inspect
import socket
import threading
import time

import numpy as np
import pytest
from tensorflow_serving.config import model_server_config_pb2

from keras_bn_serving.client import AsyncClient, Client, TensorSpec, VersionStatus
from keras_bn_serving.wire.dtypes import numpy_dtype
from keras_bn_serving.wire.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ServingError,
    UnavailableError,
    UnimplementedError,
)

X = np.float32([[1, 2, 3]])


def test_numpy_in_and_out(client):
    answer = client.predict(X)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, X * 3)
    np.testing.assert_array_equal(client.predict([[1, 2, 3]]), X * 3)
    np.testing.assert_array_equal(client.predict({"x": X}, outputs=["y"])["y"], X * 3)


def test_a_version_a_label_or_the_newest(client):
    for where, factor in [({"version": 1}, 2), ({"label": "stable"}, 2), ({"label": "canary"}, 3), ({}, 3)]:
        np.testing.assert_array_equal(client.predict(X, **where), X * factor)
        assert client.metadata(**where).version == factor - 1
    with pytest.raises(InvalidArgumentError, match="not both"):
        client.predict(X, version=1, label="stable")


def test_status(client):
    assert client.status() == [VersionStatus(2, "AVAILABLE"), VersionStatus(1, "AVAILABLE")]
    assert client.status(version=1) == [VersionStatus(1, "AVAILABLE")]
    assert client.wait_until_ready(5) == 2
    assert client.wait_until_ready(5, version=1) == 1


def test_metadata(client):
    found = client.metadata("many").signature(None)
    assert found.inputs == {"a": TensorSpec("DT_INT32", (None,)), "b": TensorSpec("DT_STRING", (None,))}
    assert {name: spec.dtype for name, spec in found.outputs.items()} == {
        "length": "DT_INT32", "text": "DT_STRING", "raw_bytes": "DT_STRING", "even": "DT_BOOL",
    }  # fmt: skip


def test_several_inputs_and_outputs(client, tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(b"\xff\xd8\x00")
    answer = client.predict({"a": [0, 1], "b": ["ø", path]}, model="many")
    assert {name: value.tolist() for name, value in answer.items() if name != "text"} == {
        "length": [2, 4],
        "raw_bytes": ["ø".encode(), b"\xff\xd8\x00"],
        "even": [True, False],
    }
    # REST passes a string output on as it is, so this one is not UTF-8 inside the JSON.
    assert answer["text"].tolist() == ["øø".encode(), b"\xff\xd8\x00" * 2]
    only = client.predict({"a": [0], "b": ["s"]}, model="many", outputs=["even", "length"])
    assert sorted(only) == ["even", "length"]
    assert client.predict({"a": [0], "b": ["s"]}, model="many", outputs="length").tolist() == [1]


EXAMPLES = {
    "float32": [0.1, -0.0, np.nan, np.inf],
    "float64": [0.1, 1e300, -np.inf],
    "int8": [-128, 127], "int16": [-(2**15)], "int32": [2**31 - 1], "int64": [-(2**63), 2**53 + 1],
    "uint8": [255], "uint32": [2**32 - 1], "uint64": [2**64 - 1],
    "bool": [True, False],
    "string": ["", b"\x00\xff", "ø"],
    "float16": [0.1], "bfloat16": [0.1], "uint16": [65535], "complex64": [1 + 2j], "complex128": [0.1j],
}  # fmt: skip
NOT_IN_JSON = {"float16", "bfloat16", "uint16", "complex64", "complex128"}


@pytest.mark.parametrize("signature", EXAMPLES)
def test_every_dtype_comes_back_as_it_went(client, address, signature):
    if address.startswith("http") and signature in NOT_IN_JSON:
        with pytest.raises(ServingError, match=r"use a grpc:// address|use gRPC") as caught:
            client.predict(EXAMPLES[signature], signature, model="echo")
        assert caught.value.code in ("INVALID_ARGUMENT", "UNIMPLEMENTED")
        return
    answer = client.predict(EXAMPLES[signature], signature, model="echo")
    if signature == "string":
        assert answer.tolist() == [b"", b"\x00\xff", "ø".encode()]
        return
    wanted = np.array(EXAMPLES[signature], answer.dtype)
    dtype = client.metadata("echo").signature(signature).outputs["y"].dtype
    assert answer.dtype == numpy_dtype(dtype)
    assert answer.tobytes() == wanted.tobytes()


def test_denormal_numbers(client, address):
    """Over REST TF Serving reads them as zero; over gRPC their bits pass through."""
    answer = client.predict([3e-45, -3e-45, 1.2e-38], "float32", model="echo")
    kept = [0.0, -0.0, 1.2e-38] if address.startswith("http") else [3e-45, -3e-45, 1.2e-38]
    np.testing.assert_array_equal(answer, np.float32(kept))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 1, 2), (2, 0)])
def test_every_shape_comes_back(client, shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    answer = client.predict(array, "float32", model="echo")
    assert answer.tolist() == array.tolist()


def test_a_batch_of_images_passes_the_default_limits(client, address):
    count = (
        1 if address.startswith("http") else 8
    )  # 1.5 MB of text; 4.8 MB, and gRPC's default limit is 4 MiB
    batch = np.random.default_rng(0).random((count, 224, 224, 3), np.float32)
    np.testing.assert_array_equal(client.predict(batch, "float32", model="echo", timeout=60), batch)


def test_a_large_answer_of_each_dtype_over_grpc(server):
    """Larger than gRPC's default limit of 4 MiB, by the server's typed fields."""
    with Client(f"grpc://localhost:{server.port}", "echo", timeout=60) as client:
        for name in ("float32", "float16", "bfloat16", "complex64", "uint64"):
            dtype = numpy_dtype(client.metadata().signature(name).inputs["x"].dtype)
            array = np.random.default_rng(0).integers(0, 200, 5 * 2**20 // dtype.itemsize).astype(dtype)
            answer = client.predict(array, name)
            assert answer.dtype == dtype
            assert answer.tobytes() == array.tobytes()
            answer[0] = 1  # the caller's own
        strings = np.array([b"x" * 1000, b"\xff\x00"] * 4000, object)
        np.testing.assert_array_equal(client.predict(strings, "string"), strings)


def test_classify_and_regress(client):
    examples = [{"x": 2.5, "name": "cat"}, {"x": [-1.0], "name": [b"dog"]}]
    assert client.classify(examples, model="examples") == [
        [("cat", 2.5), ("other", -2.5)],
        [("dog", -1.0), ("other", 1.0)],
    ]
    values = client.regress(examples, "regress", model="examples")
    assert values.dtype == np.float32
    assert values.tolist() == [5.0, -2.0]
    # The example's own feature comes before the context's.
    shared = client.regress([{"x": 1.0}, {}], "regress", model="examples", context={"x": 7.0})
    assert shared.tolist() == [2.0, 14.0]
    with pytest.raises(InvalidArgumentError):
        client.regress(
            {"x": 1}, "regress", model="examples"
        )  # an integer: int64, and the model parses floats


def test_mistakes_are_refused_before_they_are_sent(client):
    for mistake, match in [
        ([[1, 2]], r"input 'x' should be float32 \(None, 3\), and its shape is \(1, 2\)"),
        ([1, 2, 3], "add the batch axis"),
        ([["a", "b", "c"]], "input 'x' should be float32"),
        ({"z": X}, r"missing 'x'; unknown 'z'\): the signature wants x: float32 \(None, 3\)"),
    ]:
        with pytest.raises(InvalidArgumentError, match=match):
            client.predict(mistake)
    with pytest.raises(InvalidArgumentError, match=r"no signature 'other'; it offers .*serving_default"):
        client.predict(X, signature="other")
    for version in (-1, "1", 1.0):
        with pytest.raises(InvalidArgumentError, match="a version is an integer from 0 up, not"):
            client.predict(X, version=version)
    with pytest.raises(InvalidArgumentError, match="no output 'q': the signature offers y"):
        client.predict(X, outputs="q")


def test_shapes_may_be_left_to_the_server(address):
    """Which compares none with the signature: this one says (None, 3)."""
    with Client(address, model="affine", timeout=60, check_shapes=False) as trusting:
        assert trusting.predict([1, 2]).tolist() == [3, 6]
        with pytest.raises(InvalidArgumentError, match="values of type <U1 were given"):
            trusting.predict(["a"])


@contextlib.contextmanager
def relay(port):
    """A port that leads to `port`, and how many bytes have gone there."""
    sent = []

    def pass_on(source, target, counts):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                counts.append(len(data))
            target.shutdown(socket.SHUT_WR)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(("localhost", port))
                for ends in ((near, far, sent), (far, near, [])):
                    threading.Thread(target=pass_on, args=ends, daemon=True).start()

    with socket.create_server(("localhost", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], sent
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_requests_may_be_compressed(address, asynchronous):
    scheme, _, port = address.partition("://localhost:")
    batch = np.tile(X, (2000, 1))

    def ask(near, compress):
        options = {"model": "affine", "timeout": 60, "compress": compress}
        if not asynchronous:
            with Client(f"{scheme}://localhost:{near}", **options) as client:
                return client.predict(batch)

        async def ask_async():
            async with AsyncClient(f"{scheme}://localhost:{near}", **options) as client:
                return await client.predict(batch)

        return asyncio.run(ask_async())

    sizes = {}
    for compress in (False, True):
        with relay(int(port)) as (near, sent):
            np.testing.assert_array_equal(ask(near, compress), batch * 3)
            sizes[compress] = sum(sent)
    assert sizes[True] < sizes[False] / 5


def test_the_servers_words_and_code(client):
    for call, words in [
        (lambda: client.predict(X, model="none"), "Servable not found for request: Latest(none)"),
        (lambda: client.predict(X, version=9), "Servable not found for request: Specific(affine, 9)"),
        (lambda: client.status("none"), "Could not find any versions of model none"),
        (lambda: client.status(version=9), "Could not find version 9 of model affine"),
    ]:
        with pytest.raises(NotFoundError) as caught:
            call()
        assert words in str(caught.value)
        assert caught.value.code == "NOT_FOUND"
    with pytest.raises(InvalidArgumentError, match="Unrecognized servable version label: no"):
        client.predict(X, label="no")


def test_threads_share_a_client(client):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: client.predict(X * i), range(40)))
    np.testing.assert_array_equal(answers, [X * i * 3 for i in range(40)])


def test_both_clients_offer_the_same():
    def offered(kind):
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [(one.name, one.default) for one in inspect.signature(method).parameters.values()]
            for name, method in methods
            if not name.startswith("_") or name == "__init__"
        }

    assert offered(Client) == offered(AsyncClient)


def test_asyncio(address, tmp_path):
    async def ask() -> None:
        async with AsyncClient(address, "affine", timeout=60) as client:
            assert await client.wait_until_ready(5) == 2
            answers = await asyncio.gather(*(client.predict(X * i) for i in range(20)))
            np.testing.assert_array_equal(answers, [X * i * 3 for i in range(20)])
            assert (await client.metadata("many")).version == 1
            assert (await client.status())[0] == VersionStatus(2, "AVAILABLE")
            assert (await client.regress({"x": 2.0}, "regress", model="examples")).tolist() == [4.0]
            assert await client.classify({"x": 0.5}, model="examples") == [[("", 0.5), ("other", -0.5)]]
            with pytest.raises(NotFoundError, match="Servable not found"):
                await client.predict(X, model="none")
            refusal = UnimplementedError if address.startswith("http") else InvalidArgumentError
            with pytest.raises(refusal, match=r"over gRPC only|cannot be read: No such file"):
                await client.reload(tmp_path / "none.config")

    asyncio.run(ask())


def test_reload(server, models, tmp_path):
    """Its own model comes and goes; the others stay as they are."""
    base = (models / "models.config").read_text()
    extra = f'config {{ name: "extra" base_path: "{models}/affine" model_platform: "tensorflow" }}\n}}'
    config = tmp_path / "models.config"
    config.write_text(base.rstrip().removesuffix("}") + extra)
    with Client(f"grpc://localhost:{server.port}", "extra") as client:
        client.reload(config)
        np.testing.assert_array_equal(client.predict(X), X * 3)
        message = model_server_config_pb2.ModelServerConfig()
        model = message.model_config_list.config.add(name="extra", model_platform="tensorflow")
        model.base_path = "relative"
        with pytest.raises(InvalidArgumentError, match="absolute"):
            client.reload(message)
        with pytest.raises(InvalidArgumentError, match="not a ModelServerConfig"):
            client.reload({"model_config_list": {"configs": []}})
        with pytest.raises(InvalidArgumentError, match="cannot be read: No such file"):
            client.reload(tmp_path / "none.config")
        client.predict(X)  # what was refused changed nothing
        client.reload(models / "models.config")
        with pytest.raises(NotFoundError):
            for _ in range(200):  # a model that was left out is unloaded in the server's own time
                client.predict(X)
                time.sleep(0.05)
    with (
        Client(f"http://localhost:{server.rest_port}") as client,
        pytest.raises(UnimplementedError, match="use a grpc:// address"),
    ):
        client.reload(config)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_server(scheme, free_port):
    with Client(f"{scheme}://localhost:{free_port}", timeout=2) as client:
        with pytest.raises(UnavailableError):
            client.predict(X)
        with pytest.raises(DeadlineExceededError, match=r"not available after 0.3 s \(last seen: "):
            client.wait_until_ready(0.3)


@pytest.mark.parametrize(("scheme", "other"), [("http", "port"), ("grpc", "rest_port")])
def test_the_other_apis_port_is_an_error_not_a_hang(server, scheme, other):
    with Client(f"{scheme}://localhost:{getattr(server, other)}", timeout=5, retries=0) as client:
        with pytest.raises(ServingError) as caught:
            client.status()
        assert caught.value.code in ("UNAVAILABLE", "INTERNAL", "UNKNOWN")
