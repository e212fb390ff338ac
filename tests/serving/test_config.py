"""The configuration files: they parse as TF Serving's messages, and a server runs on them."""

import pathlib
import re
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import keras_bn_serving
from keras_bn_serving.client import Client
from keras_bn_serving.local_server import launch
from keras_bn_serving.local_server.catalog import BatchingParameters, MonitoringConfig
from keras_bn_serving.wire.errors import InvalidArgumentError

CONFIG = pathlib.Path(keras_bn_serving.__file__).parents[1] / "config"
MESSAGES = {
    "models.config": model_server_config_pb2.ModelServerConfig,
    "batching.config": BatchingParameters,
    "monitoring.config": MonitoringConfig,
}


def parse(name: str, text: str | None = None):
    return text_format.Parse((CONFIG / name).read_text() if text is None else text, MESSAGES[name]())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """/models of the configuration: digits, versions 1 and 2."""
    root = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        module = tf.Module()
        module.call = tf.function(
            lambda x, version=version: {"y": x * float(version)},
            input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")],
        )
        signatures = {"serving_default": module.call}
        tf.saved_model.save(module, str(root / "digits" / str(version)), signatures=signatures)
    return root


def models_config(root: pathlib.Path, tmp_path: pathlib.Path, edit=lambda text: text) -> pathlib.Path:
    path = tmp_path / "models.config"
    path.write_text(edit((CONFIG / "models.config").read_text().replace('"/models/', f'"{root}/')))
    return path


def test_every_file_parses_to_what_its_comments_say():
    (model,) = parse("models.config").model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("digits", "/models/digits", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1
    batching = parse("batching.config")
    assert batching.max_batch_size.value == 64
    assert not batching.allowed_batch_sizes
    assert parse("monitoring.config").prometheus_config.enable


def uncommented(name: str) -> str:
    """The file with the alternatives in its comments switched on: those are indented by three."""
    return re.sub(r"#   ((?:\w+ ?[:{]).*?)(   .*)?$", r"\1", (CONFIG / name).read_text(), flags=re.MULTILINE)


def test_the_alternatives_in_the_comments_parse_too():
    sizes = parse("batching.config", uncommented("batching.config")).allowed_batch_sizes
    assert list(sizes) == sorted(sizes)
    assert sizes[-1] == parse("batching.config").max_batch_size.value  # or the server refuses the file
    text = (CONFIG / "models.config").read_text()
    labels = "".join(re.findall(r"#   (version_labels .*)", text))
    for policy in re.findall(r"#   ((?:latest|specific|all) \{.*?\}) ", text):
        changed = text.replace("latest { num_versions: 1 } }", policy + " }" + labels)
        (model,) = parse("models.config", changed).model_config_list.config
        assert model.model_version_policy.WhichOneof("policy_choice") == policy.split()[0]
        assert model.version_labels == {"stable": 1, "canary": 2}


def test_a_server_runs_on_all_three(digits, tmp_path):
    flags = {
        "model_config_file": models_config(digits, tmp_path),
        "enable_batching": True,
        "batching_parameters_file": CONFIG / "batching.config",
        "monitoring_config_file": CONFIG / "monitoring.config",
    }
    with launch(**flags) as server, Client(f"http://localhost:{server.rest_port}", "digits") as client:
        assert client.wait_until_ready(10) == 2
        assert [entry.version for entry in client.status() if entry.state == "AVAILABLE"] == [2]
        x = np.float32([[1, 2]])
        np.testing.assert_array_equal(client.predict(x), x * 2)
        with pytest.raises(
            InvalidArgumentError, match="Task size 65 is larger than maximum input batch size 64"
        ):
            client.predict(np.repeat(x, 65, axis=0))
        path = parse("monitoring.config").prometheus_config.path
        page = (
            urllib.request.urlopen(f"http://localhost:{server.rest_port}{path}", timeout=10).read().decode()
        )
        assert ':tensorflow:serving:request_count{model_name="digits",status="OK"}' in page


def test_labels_as_the_comments_describe_them(digits, tmp_path):
    def labelled(text: str) -> str:
        text = text.replace("latest { num_versions: 1 } }", "specific { versions: 1 versions: 2 } }")
        return re.sub(r"#   (version_labels)", r"\1", text)

    flags = {
        "model_config_file": models_config(digits, tmp_path, labelled),
        "allow_version_labels_for_unavailable_models": True,
    }
    with launch(**flags) as server, Client(f"grpc://localhost:{server.port}", "digits") as client:
        for version in (1, 2):  # the ports open when one of them is up
            client.wait_until_ready(60, version=version)
        x = np.float32([[1, 2]])
        np.testing.assert_array_equal(client.predict(x, label="stable"), x)
        np.testing.assert_array_equal(client.predict(x, label="canary"), x * 2)
