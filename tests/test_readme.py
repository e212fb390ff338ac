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
from keras_bn.saving.plain_graph import LARGEST_CONSTANTS
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


def small_vgg16(weights):
    """VGG16 with an eighth of its filters, and dense layers that an export still keeps as variables."""
    L = keras.layers
    x = inputs = keras.Input((224, 224, 3))
    for block, (convolutions, filters) in enumerate([(2, 8), (2, 16), (3, 32), (3, 64), (3, 64)], 1):
        for index in range(1, convolutions + 1):
            name = f"block{block}_conv{index}"
            x = L.Conv2D(filters, 3, padding="same", activation="relu", name=name)(x)
        x = L.MaxPooling2D(name=f"block{block}_pool")(x)
    x = L.Flatten(name="flatten")(x)
    for name, units in (("fc1", 8192), ("fc2", 1024)):
        x = L.Dense(units, activation="relu", name=name)(x)
    model = keras.Model(inputs, L.Dense(1000, activation="softmax", name="predictions")(x), name="vgg16")
    assert 4 * model.count_params() > LARGEST_CONSTANTS
    return model


@pytest.fixture(scope="module", autouse=True)
def seeded_imagenet():
    """Seeded weights where ImageNet's can't be downloaded, of a network that is exported in seconds."""
    keras.utils.set_random_seed(0)
    patch = pytest.MonkeyPatch()
    patch.setattr(keras.applications, "VGG16", small_vgg16)
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


@pytest.mark.slow
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
