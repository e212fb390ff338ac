"""The wheel holds what it must, and works installed away from the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_holds_the_package_alone(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"keras_bn/__init__.py", "keras_bn/py.typed", "keras_bn_cli/program.py"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"keras_bn", "keras_bn_cli"}


def test_works_installed_elsewhere(wheel, tmp_path):
    """Its dependencies come from the environment that runs the tests: only the packages are new."""
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel]
    subprocess.run(pip, check=True)
    program = """
import pathlib, sys
import keras, numpy as np
import keras_bn
assert pathlib.Path(keras_bn.__file__).is_relative_to(sys.argv[1]), keras_bn.__file__
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu"), keras.layers.Dense(2)])
model = keras_bn.retrofit(model, np.random.rand(16, 4).astype("float32"), progress=False).model
print(keras_bn.export(model, "exported"))
"""
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program, target], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(str(Path("exported/1")))
