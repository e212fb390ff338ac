"""Files of every layer move between all backends, both ways."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("between_backends.py")
BACKENDS = ("tensorflow", "jax", "torch")


def test_weights_and_models_give_the_same_outputs_on_every_backend(tmp_path):
    """One process per backend saves every layer, and then loads what both others saved."""
    for backend in BACKENDS:
        pytest.importorskip(backend)
    processes = {}
    try:
        for backend in BACKENDS:
            others = [other for other in BACKENDS if other != backend]
            environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": f"{ROOT}:{ROOT / 'serving'}"}
            processes[backend] = subprocess.Popen(
                [sys.executable, SCRIPT, tmp_path, *others], env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        for backend, process in processes.items():
            line = process.stdout.readline()
            assert line == "written\n", (backend, process.communicate()[1][-2000:])
        for process in processes.values():
            process.stdin.write("\n")
            process.stdin.flush()
        for backend, process in processes.items():
            found, errors = process.communicate(timeout=900)
            assert process.returncode == 0, (backend, errors[-2000:])
            assert found.split() == [other for other in BACKENDS if other != backend]
    finally:
        for process in processes.values():
            process.kill()
