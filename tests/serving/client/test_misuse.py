"""Whatever is passed to a client, it gives a result or a ServingError that says what to do."""

import asyncio
import datetime
import decimal
import inspect
import pathlib

import numpy as np
import pytest

from keras_bn_serving.client import AsyncClient, Client
from keras_bn_serving.wire.errors import InvalidArgumentError, ServingError


class Hostile:
    """Raises whatever it is asked."""

    def __array__(self, *args, **options):
        raise RuntimeError("no array")

    def __len__(self):
        raise ZeroDivisionError

    def __repr__(self):
        raise RecursionError


CIRCLE = []
CIRCLE.append(CIRCLE)
ODD = [
    None, True, -1, 0, 1.5, float("nan"), float("inf"), 2**63, 2**64, 10**400, 1j, 1e300, ...,
    "", "x", "\ud800", "a\x00b", "a\nb", "\u00fc", "../..", "%FF", b"x", b"\xff", bytearray(b"x"),
    [], [None], [[]], ["a", 1], [[1], [2, 3]], CIRCLE, (1, 2), {1}, range(3),
    {}, {"x": None}, {1: 2}, {"\ud800": 1},
    np.int64(3), np.uint64(2**64 - 1), np.float32(1), np.bool_(True), np.datetime64("2020-01-01"),
    np.zeros((0,)), np.array(["a"]), np.zeros(2), np.array([None]), np.zeros(3, [("a", "i4")]),
    object(), object, Hostile(), decimal.Decimal("1.5"), datetime.date(2020, 1, 1), pathlib.Path("/none"),
]  # fmt: skip
CALLS = {
    "predict": {"x": [[1, 2, 3]]},
    "classify": {"examples": {"x": 1.0, "name": "n"}, "model": "examples"},
    "regress": {"examples": [{"x": 1.0}], "signature": "regress", "model": "examples"},
    "status": {},
    "metadata": {},
    "reload": {"config": {"model_config_list": {"no such field": 1}}},
    "wait_until_ready": {"timeout": 0.01},
}


def tried(call) -> None:
    try:
        call()
    except ServingError as error:
        assert str(error)
        assert error.code not in ("INTERNAL", "UNKNOWN"), repr(error)


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        (method, name)
        for method in CALLS
        for name in inspect.signature(getattr(Client, method)).parameters
        if name != "self" and (method, name) != ("wait_until_ready", "timeout")
    ],
)
def test_any_argument_of_any_method(client, method, argument):
    for value in ODD:
        if method == "reload" and argument == "config" and isinstance(value, dict) and not value:
            continue  # unloads all models
        options = {**CALLS[method], argument: value}
        tried(lambda options=options: getattr(client, method)(**options))


def test_any_feature_and_any_output(client):
    for value in ODD:
        tried(lambda value=value: client.classify({"x": value}, model="examples"))
        tried(lambda value=value: client.regress({}, "regress", context={"x": value}, model="examples"))
        tried(lambda value=value: client.predict([[1, 2, 3]], outputs=[value]))
        tried(lambda value=value: client.predict({"x": value}))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_any_setting(address, kind):
    settings = inspect.signature(kind).parameters
    for name in settings:
        for value in ODD if name != "transport" else []:
            options = {"address": address, "model": "affine", "timeout": 5.0, "retries": 0, name: value}
            tried(lambda options=options: status_of(kind(**options)))
    for value in ODD:
        tried(lambda value=value: kind(address, headers={"a": value}))
        if value.__hash__ is not None:
            tried(lambda value=value: kind(address, headers={value: "a"}))


def status_of(client):
    try:
        answer = client.status()
        return asyncio.run(awaited(answer)) if inspect.isawaitable(answer) else answer
    finally:
        closed = client.close()
        if closed is not None:
            asyncio.run(awaited(closed))


async def awaited(result):
    return await result


@pytest.mark.parametrize("timeout", [None, "5", [5], True, 1j, decimal.Decimal(5), {}, 0, -1, float("nan")])
def test_a_timeout_is_a_number(address, timeout):
    with Client(address, "affine") as client:
        for call in (client.status, client.wait_until_ready):
            if timeout is not None:  # stands for the client's own
                with pytest.raises(InvalidArgumentError, match="timeout should be a"):
                    call(timeout=timeout)
    with pytest.raises(InvalidArgumentError, match="timeout should be a"):
        Client(address, timeout=timeout)


@pytest.mark.parametrize("version", [2**63, 2**64, True, False, np.bool_(True), "1", 1.0, -1, float("nan")])
def test_a_version_is_an_integer_of_63_bits(client, version):
    with pytest.raises(InvalidArgumentError, match="a version is "):
        client.status(version=version)


@pytest.mark.parametrize("name", ["\ud800", "a\udfff", b"m", 5, ["m"], ""])
def test_names_are_text(client, name):
    with pytest.raises(InvalidArgumentError, match="the model"):
        client.status(model=name)
    with pytest.raises(InvalidArgumentError, match="the label"):
        client.metadata(label=name)
    if name != "":  # which is the default
        with pytest.raises(InvalidArgumentError, match="the signature"):
            client.predict([[1, 2, 3]], signature=name)
    with pytest.raises(InvalidArgumentError, match="the feature"):
        client.classify([{name if name != ["m"] else None: 1.0}], model="examples")


@pytest.mark.parametrize(
    "headers",
    [
        {"a": 1}, {1: "a"}, {"a": None}, {"a": b"b"}, {b"a": "b"}, {"a b": "c"}, {"": "c"}, {"a:": "c"},
        {"a": "b\r\nX: injected"}, {"a": "\x00"}, {"a": "\u00fc"}, {"a": "\ud800"}, {"\u00fc": "a"},
        [("a", "b")], "a: b", 5,
    ],
)  # fmt: skip
def test_headers_are_printable_ascii(address, headers):
    with pytest.raises(InvalidArgumentError, match="header"):
        Client(address, headers=headers)


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "CONNECTION", "Content-Encoding"])
def test_headers_that_the_client_sets_itself(name):
    with pytest.raises(InvalidArgumentError, match="is set by the client itself"):
        Client("http://localhost", headers={name: "1"})


def test_header_names_that_grpc_does_not_take():
    for name in ("a!b", "trace-bin"):
        with pytest.raises(InvalidArgumentError, match="is no gRPC metadata"):
            Client("grpc://localhost", headers={name: "1"})


@pytest.mark.parametrize(
    "address",
    [
        None, 5, b"http://h", ["http://h"], "", "h:1", "http://", "http:///", "ftp://h", "http://a b", "http://h\n",
        "http://[::1", "http://[zz::1]", "http://h:port", "http://h:99999", "http://h:-1", "http://h:0", "http://%zz",
        "http://a..b", "http://" + "a" * 100, "http://\u2100", "http://\ud800", "http://user:word@h", "http://h?x",
        "http://h#x", "grpc://h/path", "grpc://:8500", "unix:", "unix:" + "a" * 200, "unix:a\x00b", "http://a\\b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_addresses_that_are_none(kind, address):
    with pytest.raises(InvalidArgumentError, match="the address"):
        kind(address)


def test_tls_files_come_in_pairs(tmp_path):
    with pytest.raises(InvalidArgumentError, match="needs its certificate: pass cert="):
        Client("https://localhost", key=tmp_path / "key.pem")
    with pytest.raises(InvalidArgumentError, match="needs its key: pass key="):
        Client("grpcs://localhost", cert=tmp_path / "cert.pem")
    with pytest.raises(InvalidArgumentError, match="ca should be the path of a PEM file"):
        Client("https://localhost", ca=b"-----BEGIN")


def test_a_number_beyond_the_range_is_refused_and_infinity_is_not(client):
    with pytest.raises(InvalidArgumentError, match="beyond its range"):
        client.predict([[1e300, 0, 0]])
    assert client.predict([[np.inf, 0, 0]]).tolist() == [[np.inf, 0, 0]]
    with pytest.raises(InvalidArgumentError, match="no 64-bit integer"):
        client.classify({"x": 2**63}, model="examples")


@pytest.mark.parametrize("config", [5, None, ["a"], {"x": 1}, {"\ud800": 1}, b"x", CIRCLE])
def test_a_configuration_that_is_none(client, address, config):
    if address.startswith("grpc"):
        with pytest.raises(InvalidArgumentError, match="is not a ModelServerConfig"):
            client.reload(config)
