"""The server of the tests, with a model for each thing a client can meet: ours, and a real one on PATH."""

import contextlib
import pathlib
import shutil
import socket
import subprocess
import types

import ml_dtypes  # noqa: F401 - gives NumPy its bfloat16
import pytest
import tensorflow as tf

from keras_bn_serving.client import Client
from keras_bn_serving.local_server import launch

CONFIG = """
model_config_list {{
  config {{
    name: "affine" base_path: "{0}/affine" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    version_labels {{ key: "stable" value: 1 }} version_labels {{ key: "canary" value: 2 }}
  }}
  config {{ name: "echo" base_path: "{0}/echo" model_platform: "tensorflow" }}
  config {{ name: "many" base_path: "{0}/many" model_platform: "tensorflow" }}
  config {{ name: "examples" base_path: "{0}/examples" model_platform: "tensorflow" }}
}}
"""
ECHOED = """float32 float64 float16 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool string
    complex64 complex128""".split()  # noqa: SIM905


def save(path, **signatures):
    module = tf.Module()
    module.kept = list(signatures.values())
    tf.saved_model.save(module, str(path), signatures=signatures)


def affine(factor):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def call(x):
        return {"y": x * factor}

    return call


def echo(dtype):
    @tf.function(input_signature=[tf.TensorSpec(None, dtype, name="x")])
    def call(x):
        return {"y": tf.identity(x)}

    return call


@tf.function(
    input_signature=[tf.TensorSpec([None], tf.int32, name="a"), tf.TensorSpec([None], tf.string, name="b")]
)
def many(a, b):
    return {
        "length": tf.strings.length(b) + a,
        "text": tf.strings.join([b, b]),
        "raw_bytes": b,
        "even": a % 2 == 0,
    }


def parsed(examples):
    features = {"x": tf.io.FixedLenFeature([], tf.float32), "name": tf.io.FixedLenFeature([], tf.string, "")}
    return tf.io.parse_example(examples, features)


@tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
def classify(inputs):
    features = parsed(inputs)
    scores = tf.stack([features["x"], -features["x"]], axis=1)
    return {
        "classes": tf.stack([features["name"], tf.fill(tf.shape(features["name"]), "other")], axis=1),
        "scores": scores,
    }


@tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
def regress(inputs):
    return {"outputs": parsed(inputs)["x"] * 2.0}


@pytest.fixture(scope="package")
def models(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("models")
    save(root / "affine" / "1", serving_default=affine(2.0))
    save(root / "affine" / "2", serving_default=affine(3.0))
    save(root / "echo" / "1", **{name: echo(tf.as_dtype(name)) for name in ECHOED})
    save(root / "many" / "1", serving_default=many)
    save(root / "examples" / "1", serving_default=classify, regress=regress)
    (root / "models.config").write_text(CONFIG.format(root))
    return root


@contextlib.contextmanager
def launch_real(**flags):
    """A tensorflow_model_server with the interface of `launch`."""
    running = types.SimpleNamespace(port=unused_port(), rest_port=unused_port())
    flags |= {"port": running.port, "rest_api_port": running.rest_port}
    command = ["tensorflow_model_server", *(f"--{name}={value}" for name, value in flags.items())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield running
    finally:
        process.kill()
        process.wait()


REAL = [pytest.param(launch_real, marks=pytest.mark.tfserving, id="tfserving")]
SERVERS = [pytest.param(launch, id="local"), *(REAL if shutil.which("tensorflow_model_server") else [])]


@pytest.fixture(scope="package", params=SERVERS)
def server(request, models):
    flags = {
        "model_config_file": models / "models.config",
        "allow_version_labels_for_unavailable_models": True,
    }
    with request.param(**flags) as running:
        with Client(f"http://localhost:{running.rest_port}", "affine") as client:
            for version in (1, 2):  # the ports open when one of them is up
                client.wait_until_ready(60, version=version)
        yield running


@pytest.fixture(scope="package", params=["http", "grpc"])
def address(request, server):
    return f"{request.param}://localhost:{server.rest_port if request.param == 'http' else server.port}"


@pytest.fixture(scope="package")
def client(address):
    with Client(address, model="affine", timeout=60) as connected:  # a busy machine is not a failure
        yield connected


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture
def free_port():
    return unused_port()


@pytest.fixture(scope="package")
def certificates(tmp_path_factory):
    """An authority, and a certificate for localhost and for the client signed by it."""
    if shutil.which("openssl") is None:
        pytest.skip("the certificates of this test are made by the openssl command")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca")
    (folder / "san").write_text("subjectAltName=DNS:localhost\n")
    for name in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-extfile", "san", "-days", "2", "-out", f"{name}.pem")  # fmt: skip
    return folder
