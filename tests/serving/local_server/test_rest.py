"""The REST API in process: any request has an answer, and none is the server's fault."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_bn_serving.local_server.flags import Flags
from keras_bn_serving.local_server.manager import Manager
from keras_bn_serving.local_server.rest import Request, Response, RestApi
from keras_bn_serving.local_server.servable import load

Ask = Callable[..., Response]


@pytest.fixture(scope="module")
def manager(models: Path) -> Iterator[Manager]:
    flags = Flags(max_num_load_retries=0)
    manager = Manager(lambda name, path: load(name, path, flags), flags)
    names = ("three", "two", "examples", "echo_str", "echo_i32", "echo_f32")
    manager.want({name: {1: str(models / name / "1")} for name in names})
    assert manager.wait(list(names)) == []
    yield manager
    manager.close()


@pytest.fixture(scope="module")
def ask(manager: Manager) -> Ask:
    api = RestApi(manager, Flags(rest_api_max_body_bytes=1 << 20))

    def send(target: str, body: bytes = b"", method: str = "", **headers: str) -> Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return api(Request(method or ("POST" if body else "GET"), target, names, body))

    return send


_BODIES = st.one_of(
    st.binary(max_size=200),
    st.fixed_dictionaries(
        {},
        optional={
            key: st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["x", "a", "b", "b64", "s", "n"]), inner, max_size=3)
                ),
                max_leaves=8,
            )
            for key in ("instances", "inputs", "examples", "context", "signature_name")
        },
    ).map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass")),
)


@settings(max_examples=700, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=_BODIES,
    name=st.sampled_from(["three", "two", "examples", "echo_str", "echo_i32", "echo_f32", "none"]),
    verb=st.sampled_from(["predict", "classify", "regress"]),
    zipped=st.booleans(),
)
def test_no_body_is_a_server_error(ask: Ask, body: bytes, name: str, verb: str, zipped: bool) -> None:
    headers = {"content_encoding": "gzip"} if zipped else {}
    answer = ask(f"/v1/models/{name}:{verb}", gzip.compress(body) if zipped else body, "POST", **headers)
    assert answer.status < 500 or b"Conversion of JSON Value" in answer.body
    if answer.status != 200:
        assert set(json.loads(answer.body.decode("utf-8", "replace"))) == {"error"}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(target=st.text(max_size=40) | st.text("/v1modelsthre:%2F.?#&", max_size=40).map("/v1/".__add__))
def test_no_target_is_a_server_error(ask: Ask, target: str) -> None:
    for method in ("GET", "POST", "OPTIONS", "BREW"):
        assert ask(target, b"{}", method).status < 500


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "..", ".", "three/1", "/", "\0", "three\0", "..\\..", "C:\\", "%2e%2e"]
)
def test_names_are_names_and_never_paths(ask: Ask, name: str) -> None:
    answer = ask(f"/v1/models/{quote(name, safe='')}:predict", b'{"instances": [1.0]}')
    assert answer.status == 404
    assert json.loads(answer.body) == {"error": f"Servable not found for request: Latest({name})"}


def test_a_gzip_bomb_counts_as_empty(ask: Ask) -> None:
    bomb = gzip.compress(b"[" + b" " * (64 << 20) + b"]")
    answer = ask("/v1/models/three:predict", bomb, content_encoding="gzip")
    assert (answer.status, json.loads(answer.body)) == (
        400,
        {"error": "JSON Parse error: The document is empty"},
    )


@pytest.mark.parametrize("depth", [65, 254, 100_000])
def test_a_value_nested_too_deep_is_refused(ask: Ask, depth: int) -> None:
    body = b'{"instances": ' + b"[" * depth + b"1" + b"]" * depth + b"}"
    assert ask("/v1/models/echo_f32:predict", body).status == 400


def test_a_big_array_gives_the_same_as_a_small_one(ask: Ask) -> None:
    rows = [[0.5 * i, -1.0 * i] for i in range(2000)]
    for key, name in (("instances", "predictions"), ("inputs", "outputs")):
        answer = ask("/v1/models/echo_f32:predict", json.dumps({key: rows}).encode())
        assert json.loads(answer.body) == {name: rows}


def test_a_big_array_of_decimals_for_integers_is_refused_with_the_first(ask: Ask) -> None:
    rows = [[1, 2]] * 2000 + [[3, 4.5]]
    answer = ask("/v1/models/echo_i32:predict", json.dumps({"inputs": rows}).encode())
    assert json.loads(answer.body) == {"error": "JSON Value: 1.0 Type: Number is not of expected type: int32"}
