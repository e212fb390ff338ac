"""`pytest -m tfserving` finds a tensorflow_model_server: here the local server stands in for one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import Program
from tests.serving.golden import replay

GOLDEN = Path(replay.__file__).parent
MAIN = next(vector for vector in replay.load() if vector.get("name") == "main")
STAND_IN = """#!/bin/sh
echo "$@" >> {log}
exec {python} -m keras_bn_serving.local_server "$@"
"""


def run(*arguments: str | Path, **environment: str) -> str:
    command = [sys.executable, "-m", "pytest", "-m", "tfserving", "-q", "--tb=no", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=300
    ).stdout


@pytest.mark.slow
def test_one_on_path_is_started_and_asked(tmp_path: Path) -> None:
    binary, log = tmp_path / "tensorflow_model_server", tmp_path / "log"
    binary.write_text(STAND_IN.format(log=log, python=sys.executable))
    binary.chmod(0o755)
    tests = GOLDEN.parent / "client" / "test_client.py"
    printed = run(
        tests, "-k", "numpy_in_and_out or label_or_the_newest", PATH=f"{tmp_path}:{os.environ['PATH']}"
    )
    assert re.search(r"^4 passed", printed, re.MULTILINE), printed
    (started,) = log.read_text().splitlines()
    assert "--model_config_file=" in started


@pytest.mark.slow
def test_one_that_runs_elsewhere_is_asked_the_vectors(tmp_path: Path) -> None:
    """All of the setup `main`, and as no real one is behind it, just those fail that are listed."""
    models = tmp_path / "models"
    Program(GOLDEN / "make_models.py", [models]).wait(120)
    stage = replay.Stage(MAIN, models, tmp_path / "main")
    with stage.server as server:
        assert server.wait_for_ports(60), server.stderr.read_text()
        printed = run(GOLDEN, TFSERVING_HOST=f"localhost:{server.port}:{server.rest_port}")
    asked = {vector["id"] for vector in replay.load() if vector.get("setup") == "main"}
    listed = set(json.loads((GOLDEN / "disagreements.json").read_text()))
    assert set(re.findall(r"FAILED \S+test_vector\[host-(\S+)\]", printed)) == asked & listed, printed
    passed = re.search(r"(\d+) passed", printed)
    assert passed
    assert int(passed[1]) == len(asked - listed) + 1
