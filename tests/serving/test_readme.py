"""serving/README.md, top to bottom, as a reader would follow it, less Docker and the cluster."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import keras_bn_serving
from keras_bn_serving.local_server import launch
from keras_bn_serving.local_server.flags import Flags

SERVING = pathlib.Path(keras_bn_serving.__file__).parents[1]
README = (SERVING / "README.md").read_text()
SNIPPETS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
ELSEWHERE = ("docker", "kubectl", "MODELS=")


def commands(block: str) -> list[str]:
    return block.replace("\\\n", " ").strip().splitlines()


class Reader:
    """Does what the snippets say; the ports 8500 and 8501 stand for free ones."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.names, self.server, self.outputs = folder, {}, None, {}

    def localized(self, text: str) -> str:
        ports = {"8500": self.server.port, "8501": self.server.rest_port} if self.server else {}
        return re.sub("8500|8501", lambda port: str(ports.get(port[0], port[0])), text)

    def python(self, code: str) -> None:
        exec(compile(self.localized(code), "README", "exec"), self.names)

    def shell(self, command: str) -> None:
        if command.startswith("keras-bn-model-server"):
            self.start(command)
        elif not command.startswith(ELSEWHERE):
            path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
            done = subprocess.run(
                ["bash", "-c", self.localized(command)], capture_output=True, text=True, timeout=120,
                env={**os.environ, "PATH": path, "TF_SERVING_URL": self.localized("http://localhost:8501")},
            )  # fmt: skip
            assert done.returncode == 0, f"{command}: {done.stderr}"
            self.outputs[command] = done.stdout

    def start(self, command: str) -> None:
        self.stop()
        arguments = [argument.replace("$PWD", str(self.folder)) for argument in shlex.split(command)[1:]]
        flags = dict(argument.removeprefix("--").split("=") for argument in arguments)
        assert (flags.pop("port"), flags.pop("rest_api_port")) == ("8500", "8501")
        self.server = launch(flags.pop("model_base_path"), flags.pop("model_name"), **flags)

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(SERVING / "config", folder / "serving" / "config")
    before = pathlib.Path.cwd()
    os.chdir(folder)
    reading = Reader(folder)
    try:
        for language, code in SNIPPETS:
            if language == "python":
                reading.python(code)
            elif language == "sh":
                for command in commands(code):
                    reading.shell(command)
        yield reading
    finally:
        reading.stop()
        os.chdir(before)


@pytest.mark.slow
def test_every_snippet_runs_and_the_answers_agree(reader):
    images, answers = reader.names["images"], np.concatenate(reader.names["answers"])
    assert answers.shape == (32, 10)
    # One by one and in a batch of 64: inference mode, to the rounding of two shapes of the same kernels.
    np.testing.assert_allclose(answers, reader.names["many"][:32], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(reader.names["pinned"], reader.names["one"], rtol=0, atol=0)
    assert images.shape == (1797, 8, 8, 1)


def test_the_shell_says_what_the_text_promises(reader):
    printed = reader.outputs
    assert '"AVAILABLE"' in printed["curl http://localhost:8501/v1/models/digits"]
    assert "signature_def" in printed["curl http://localhost:8501/v1/models/digits/metadata"]
    assert "predictions" in printed["curl -d @request.json http://localhost:8501/v1/models/digits:predict"]
    assert printed["python -m keras_bn_serving.client --model digits image.npy"].startswith("[[")
    metrics = printed["curl http://localhost:8501/monitoring/prometheus/metrics"]
    assert ":tensorflow:serving:request_count{" in metrics


@pytest.mark.parametrize("body", [b'{"instances": [1.0]}', b'{"instances": ' + b"[" * 100_000])
def test_what_ends_tf_serving_does_not_end_the_local_server(reader, body):
    url = f"http://localhost:{reader.server.rest_port}/v1/models/digits:predict"
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(url, data=body, timeout=60)
    assert urllib.request.urlopen(url.removesuffix(":predict"), timeout=60).status == 200


def test_the_configuration_in_the_text_is_one():
    (block,) = [code for language, code in SNIPPETS if language == "protobuf"]
    config = text_format.Parse(block, model_server_config_pb2.ModelServerConfig())
    assert config.model_config_list.config[0].version_labels["stable"] == 1


def test_every_file_and_flag_in_the_text_exists():
    for path in re.findall(r"(?:serving/)?((?:deploy|config|keras_bn_serving)/[\w./-]*)", README):
        assert (SERVING / path.rstrip(".")).exists(), path
    known = set(vars(Flags()))
    for language, code in SNIPPETS:
        for command in commands(code) if language == "sh" else []:
            if command.startswith("keras-bn-model-server"):
                assert {flag for flag in re.findall(r"--(\w+)=", command)} <= known
