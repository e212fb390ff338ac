"""The golden vectors against the local server: each agrees, or is listed with the reason why not.

`pytest -m tfserving` plays the same vectors to a tensorflow_model_server found on PATH. One in a container is
asked those of the setup `main`: make its models with make_models.py, start it with that setup's flags (see
golden.jsonl.gz), wait until it has loaded them all, and set TFSERVING_HOST=host:grpc_port:rest_port.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from keras_bn_serving import local_server
from tests.processes import Program
from tests.serving.golden import replay
from tests.serving.golden.process import REAL_BINARY, REAL_HOST, accepts

_HERE = Path(__file__).parent
_README = Path(local_server.__file__).with_name("README.md")
_VECTORS = replay.load()
_SETUPS = {vector["name"]: vector for vector in _VECTORS if vector["kind"] == "setup"}
_DISAGREEMENTS: dict[str, str] = json.loads((_HERE / "disagreements.json").read_text())
# The vectors that need a server of their own mostly wait; more at a time would only delay each other's
# deadlines.
_AT_A_TIME = 6

_HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
_NEEDS_OPENVINO = pytest.mark.skipif(not _HAS_OPENVINO, reason="needs openvino")
_SERVERS = [pytest.param("local"), pytest.param("openvino", marks=_NEEDS_OPENVINO)]
if REAL_BINARY:
    _SERVERS.append(pytest.param("binary", marks=pytest.mark.tfserving))
if REAL_HOST:
    _SERVERS.append(pytest.param("host", marks=pytest.mark.tfserving))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that the vectors speak about."""
    folder = tmp_path_factory.mktemp("golden") / "models"
    Program(_HERE / "make_models.py", [folder]).wait(120)
    return folder


@pytest.fixture(scope="module", params=_SERVERS)
def outcomes(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """The differences of every vector, by id."""
    kind, folder = request.param, tmp_path_factory.mktemp("golden")

    def one(vector: dict[str, Any]) -> dict[str, list[str]]:
        place = folder / vector.get("name", vector.get("id", ""))
        if vector["kind"] == "setup":
            asked = [other for other in _VECTORS if other.get("setup") == vector["name"]]
            return replay.setup(vector, asked, models, place, kind)
        play = replay.sequence if vector["kind"] == "sequence" else replay.startup
        differences = play(vector, models, place, kind)
        return {vector["id"]: differences}

    alone = [vector for vector in _VECTORS if vector["kind"] in ("setup", "sequence", "startup")]
    if kind == "host":
        alone = [_SETUPS["main"]]
    if (
        kind == "openvino"
    ):  # the engine answers requests; how a server starts and follows files is not its business
        alone = list(_SETUPS.values())
    result: dict[str, list[str]] = {}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for differences in pool.map(one, alone):
            result |= differences
    return result


@pytest.mark.parametrize("name", [vector["id"] for vector in _VECTORS if vector["kind"] != "setup"])
def test_vector(name: str, outcomes: dict[str, list[str]], request: pytest.FixtureRequest) -> None:
    if name not in outcomes:
        pytest.skip("needs a server of its own")
    differences = outcomes[name]
    if name in _DISAGREEMENTS and request.node.callspec.params["outcomes"] in ("local", "openvino"):
        assert differences, f"{name} agrees now: take it out of disagreements.json"
    else:
        assert not differences, "\n".join(differences)


@pytest.mark.tfserving
def test_real_server_is_there() -> None:
    """`pytest -m tfserving` has something to ask, or says by this test that it was not run."""
    if not (REAL_BINARY or REAL_HOST):
        pytest.skip("no tensorflow_model_server on PATH or at TFSERVING_HOST")
    if REAL_BINARY:
        printed = subprocess.run(
            [REAL_BINARY, "--version"], capture_output=True, text=True, timeout=60
        ).stdout
        assert printed.startswith("TensorFlow ModelServer: ")
    if REAL_HOST:
        host, port, rest_port = REAL_HOST.split(":")
        assert accepts(int(port), host)
        assert accepts(int(rest_port), host)


def test_the_readme_says_how_many_agree(
    outcomes: dict[str, list[str]], request: pytest.FixtureRequest
) -> None:
    """Counted from the answers, not from the list of disagreements."""
    if request.node.callspec.params["outcomes"] != "local":
        pytest.skip("the README speaks of the local server")
    counts = {}
    for kind in ("rest", "grpc", "sequence", "startup"):
        names = [vector["id"] for vector in _VECTORS if vector["kind"] == kind]
        counts[kind] = f"{sum(not outcomes[name] for name in names)} of {len(names)}"
    said = re.sub(r"\s+", " ", _README.read_text())
    assert f"{counts['rest']} over REST, {counts['grpc']} over gRPC, " in said, counts
    assert f"{counts['sequence']} sequences and {counts['startup']} starts agree" in said, counts


def test_list_names_vectors_only() -> None:
    assert set(_DISAGREEMENTS) <= {vector["id"] for vector in _VECTORS if vector["kind"] != "setup"}
