"""Both wheels: what they hold, and that each works in an environment of nothing but what it declares."""

import email
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import keras_bn
import keras_bn_serving
from keras_bn_serving.local_server import launch

ROOT = Path(__file__).parents[1]


class Project(NamedTuple):
    folder: Path
    packages: set[str]
    version: str
    dependencies: set[str]


PROJECTS = {
    "keras-bn": Project(
        ROOT, {"keras_bn", "keras_bn_cli"}, keras_bn.__version__, {"keras", "numpy", "tqdm", "click"}
    ),
    "keras-bn-serving": Project(
        ROOT / "serving",
        {"keras_bn_serving"},
        keras_bn_serving.__version__,
        {"numpy", "orjson", "h11", "grpcio", "protobuf", "click"},
    ),
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheels, each built from its source distribution, with the backend installed here: no network."""
    folder = tmp_path_factory.mktemp("dist")
    for project in PROJECTS.values():
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, project.folder]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    return {name: next(folder.glob(f"{name.replace('-', '_')}-*.whl")) for name in PROJECTS}


@pytest.fixture(params=PROJECTS)
def name(request):
    return request.param


def metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (path,) = (path for path in archive.namelist() if path.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(archive.read(path))


def test_holds_the_package_its_types_and_its_licence_and_nothing_else(wheels, name):
    files = set(zipfile.ZipFile(wheels[name]).namelist())
    packages = PROJECTS[name].packages
    import_name = name.replace("-", "_")
    information = f"{import_name}-{PROJECTS[name].version}.dist-info"
    assert {path.split("/")[0] for path in files} == packages | {information}
    assert {f"{import_name}/py.typed", f"{information}/licenses/LICENSE"} <= files
    sources = {
        path.relative_to(PROJECTS[name].folder).as_posix()
        for package in packages
        for path in (PROJECTS[name].folder / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert sources == {path for path in files if path.split("/")[0] in packages}


def test_metadata(wheels, name):
    message = metadata(wheels[name])
    assert message["Name"] == name
    assert message["Version"] == PROJECTS[name].version
    assert message["License-Expression"] == "Apache-2.0"
    assert message["Requires-Python"] == ">=3.10"
    assert "Typing :: Typed" in message.get_all("Classifier")
    # Its dependencies and no others; each has a lower bound and leaves the newest release free.
    hard = [Requirement(text) for text in message.get_all("Requires-Dist") if "extra ==" not in text]
    assert {requirement.name for requirement in hard} == PROJECTS[name].dependencies
    assert all(str(requirement.specifier).startswith(">=") for requirement in hard)


def test_the_serving_extra_names_the_other_distribution(wheels):
    required = [Requirement(text) for text in metadata(wheels["keras-bn"]).get_all("Requires-Dist")]
    (other,) = (
        requirement
        for requirement in required
        if requirement.name == "keras-bn-serving" and requirement.marker.evaluate({"extra": "serving"})
    )
    assert other.extras == {"server"}


class Environment:
    """A virtual environment of a wheel, what it requires, and nothing else.

    The dependencies are those of the environment that runs the tests, linked file by file, so no network is
    needed. What a package uses and does not declare is missing here.
    """

    def __init__(self, folder: Path, wheel: Path, *requirements: str) -> None:
        venv.create(folder, symlinks=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
        for distribution in self._closure(requirements or metadata(wheel).get_all("Requires-Dist")):
            for file in distribution.files:
                if ".." not in file.parts:
                    target = Path(site, file)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.exists():
                        target.symlink_to(file.locate())

    @staticmethod
    def _closure(requirements):
        """Every distribution that is required, directly or not."""
        seen = {}
        queue = [(Requirement(text), "") for text in requirements]
        while queue:
            requirement, extra = queue.pop()
            key = canonicalize_name(requirement.name), *sorted(requirement.extras)
            if key in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
                continue
            seen[key] = importlib.metadata.distribution(requirement.name)
            for text in seen[key].requires or []:
                queue += [(Requirement(text), extra) for extra in ("", *requirement.extras)]
        return seen.values()

    def run(self, *command, **variables):
        """Run a program of the environment, away from the checkout."""
        inherited = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        path = f"{self.python.parent}:/usr/bin:/bin"
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=300,
            env={**inherited, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "2", **variables},
        )  # fmt: skip

    def prints(self, program, *arguments, **variables):
        """What the Python program prints."""
        done = self.run(self.python, "-c", program, *arguments, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout


CLIENT = """
import importlib.util, sys
import numpy as np
from keras_bn_serving.client import Client

for url in sys.argv[1:]:
    with Client(url, "half") as client:
        signature = client.metadata().signatures["serving_default"]
        print(client.predict(np.float32([1, 2, 4])).tolist(), list(signature.inputs))
for name in ("tensorflow", "keras", "keras_bn", "jax", "torch", "serving"):
    assert importlib.util.find_spec(name) is None, name
"""


@pytest.fixture(scope="module")
def serving_alone(wheels, tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("client") / "venv", wheels["keras-bn-serving"])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    import tensorflow as tf

    root = tmp_path_factory.mktemp("models") / "half"
    module = tf.Module()
    module.half = tf.function(
        lambda x: {"y": x / 2}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")]
    )
    tf.saved_model.save(module, str(root / "1"), signatures=module.half)
    with launch(root, "half") as running:
        yield running


def test_the_client_works_without_tensorflow(serving_alone, server):
    urls = f"http://localhost:{server.rest_port}", f"grpc://localhost:{server.port}"
    assert serving_alone.prints(CLIENT, *urls).splitlines() == ["[0.5, 1.0, 2.0] ['x']"] * 2


def test_the_query_command_works_without_tensorflow(serving_alone, server):
    np.save(serving_alone.folder / "x.npy", np.float32([3, 5]))
    url = f"http://localhost:{server.rest_port}"
    done = serving_alone.run("keras-bn-query", "--url", url, "--model", "half", "x.npy")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"[\d.]+", done.stdout) == ["1.5", "2.5"]


LAYERS = """
import importlib.util, sys
import keras, numpy as np
import keras_bn

assert keras.backend.backend() == sys.argv[1]
for name in ("tensorflow", "keras_bn_serving", "serving", "jax" if sys.argv[1] == "torch" else "torch"):
    assert importlib.util.find_spec(name) is None, name
L = keras.layers
images, labels = np.random.rand(32, 6, 6, 2).astype("float32"), np.random.rand(32, 1).astype("float32")
for layer in (
    keras_bn.BatchNormalization(),
    keras_bn.BatchRenormalization(),
    keras_bn.GhostBatchNormalization(8),
    keras_bn.AccumulatedBatchNormalization(2),
    keras_bn.CrossIterationNormalization(L.Conv2D(4, 1, use_bias=False), 2),
):
    model = keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(3, 3), layer, L.Flatten(), L.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(images, labels, batch_size=16, verbose=0)
    (moving_mean,) = (weight for weight in model.weights if weight.name == "moving_mean")
    assert np.abs(keras.ops.convert_to_numpy(moving_mean)).max() > 0, layer
    model.save("model.keras")
    again = keras.saving.load_model("model.keras")
    np.testing.assert_array_equal(model.predict(images, verbose=0), again.predict(images, verbose=0))
    print(type(layer).__name__)

plain = keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(3, 3), L.ReLU(), L.Flatten(), L.Dense(1)])
retrofitted = keras_bn.retrofit(plain, images, progress=False).model
np.testing.assert_array_equal(plain.predict(images, verbose=0), retrofitted.predict(images, verbose=0))
recalibrated = keras_bn.recalibrate(retrofitted, images, progress=False).model
np.testing.assert_allclose(
    plain.predict(images, verbose=0), recalibrated.predict(images, verbose=0), rtol=1e-4, atol=1e-5
)

stack = [L.Conv2D(3, 3), L.BatchNormalization(), L.Flatten(), L.Dense(1)]
donor = keras.Sequential([keras.Input((6, 6, 2)), *stack])
donor.compile("sgd", "mse")
donor.fit(images, labels, batch_size=16, verbose=0)
for changed in (
    keras_bn.convert(donor),
    keras_bn.convert(keras_bn.convert(donor).model, to="keras"),
    keras_bn.fold(donor),
    keras_bn.freeze(donor),
    keras_bn.unfreeze(keras_bn.freeze(donor).model),
    keras_bn.recalibrate(donor, images, prior=np.inf, progress=False),
):
    np.testing.assert_allclose(
        donor.predict(images, verbose=0), changed.model.predict(images, verbose=0), rtol=1e-4, atol=1e-5
    )
    assert str(changed.report)
(observed,) = keras_bn.inspect(donor, images, progress=False).layers
assert observed.data.mean.shape == (3,)
try:
    keras_bn.export(plain, "exported")
except keras_bn.KerasBNError as error:
    assert "pip install 'keras-bn[tensorflow]'" in str(error), error
else:
    raise AssertionError("exported without TensorFlow")
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_layers_and_functions_on_models_work_without_tensorflow(wheels, tmp_path, backend):
    pytest.importorskip(backend)
    wheel = wheels["keras-bn"]
    hard = [text for text in metadata(wheel).get_all("Requires-Dist") if "extra ==" not in text]
    environment = Environment(tmp_path / "venv", wheel, *hard, backend)
    trained = environment.prints(LAYERS, backend, KERAS_BACKEND=backend)
    assert len(trained.split()) == 5
    for command in ("--help", "fold --help", "--version"):
        done = environment.run("keras-bn", *command.split(), KERAS_BACKEND=backend)
        assert done.returncode == 0, done.stderr
    version = environment.folder / "models" / "1" / "saved_model.pb"
    version.parent.mkdir(parents=True)
    version.touch()
    done = environment.run("keras-bn", "serve", "models", KERAS_BACKEND=backend)
    assert done.returncode == 2
    assert "pip install 'keras-bn-serving[server]'" in done.stderr


RETROFIT_AND_EXPORT = """
import keras, numpy as np
import keras_bn
layers = [keras.layers.Dense(3, activation="relu"), keras.layers.Dense(2)]
model = keras.Sequential([keras.Input((4,)), *layers])
model = keras_bn.retrofit(model, np.random.rand(16, 4).astype("float32"), progress=False).model
print(keras_bn.export(model, "exported"))
"""


def test_retrofit_and_export_with_the_tensorflow_extra(wheels, tmp_path):
    wheel = wheels["keras-bn"]
    requirements = [
        text.partition(";")[0]
        for text in metadata(wheel).get_all("Requires-Dist")
        if "extra ==" not in text or "extra == 'tensorflow'" in text
    ]
    environment = Environment(tmp_path / "venv", wheel, *requirements)
    assert environment.prints(RETROFIT_AND_EXPORT).strip().endswith(str(Path("exported/1")))
