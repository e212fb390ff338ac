"""The README's snippets run as pasted, in one session, top to bottom."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_bn
from keras_bn_serving.local_server import launch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The Python names the snippets made so far, in a folder of their own."""
    folder = tmp_path_factory.mktemp("readme")
    before = os.getcwd()
    os.chdir(folder)
    yield {}
    os.chdir(before)


@pytest.fixture(scope="module", autouse=True)
def seeded_imagenet():
    """VGG16 as the README loads it, with seeded weights where ImageNet's can't be downloaded."""
    real = keras.applications.VGG16
    keras.utils.set_random_seed(0)
    patch = pytest.MonkeyPatch()
    patch.setattr(keras.applications, "VGG16", lambda weights: real(weights=None))
    yield
    patch.undo()


def python_snippet(number):
    return [code for language, code in SNIPPETS if language == "python"][number]


def shell_snippet(start):
    (code,) = [code for language, code in SNIPPETS if language == "sh" and code.startswith(start)]
    return code


def test_swap_the_layer(session):
    exec(python_snippet(0), session)
    normalizations = [layer for layer in session["model"].layers if "BatchNorm" in type(layer).__name__]
    assert len(normalizations) == 52
    assert all(type(layer) is keras_bn.BatchNormalization for layer in normalizations)


def test_retrofit_and_export_and_serve_and_query(session):
    exec(python_snippet(1), session)
    exec(python_snippet(2), session)
    assert session["version_folder"] == Path("models/vgg/1")

    command = shlex.split(shell_snippet("keras-bn serve"))
    assert command[:2] == ["keras-bn", "serve"]
    with launch(model_base_path=Path(command[2]).resolve(), model_name="vgg", timeout=300) as server:
        ports = {"8501": str(server.rest_port), "8500": str(server.port)}
        localized = re.sub("8500|8501", lambda port: ports[port[0]], python_snippet(3))
        exec(localized, session)
        curl = re.sub("8500|8501", lambda port: ports[port[0]], shell_snippet("curl"))
        status = subprocess.run(shlex.split(curl), capture_output=True, text=True, check=True).stdout
    assert session["probabilities"].shape == (1, 1000)
    assert '"AVAILABLE"' in status


def test_the_command_line_says_what_it_can_do():
    command = [str(Path(sys.executable).with_name("keras-bn")), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for verb in ["demo", "convert", "retrofit", "recalibrate", "fold", "inspect", "export", "serve", "query"]:
        assert f"\n  {verb} " in text
