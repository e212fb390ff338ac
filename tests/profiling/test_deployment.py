"""A measured setting in the deployment files: what is written, what is kept, what is refused."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

import keras_bn
from keras_bn.profiling.deployment import write_setting
from keras_bn.profiling.measurement import Measurement, Setting
from keras_bn.profiling.plan import Plan

SERVING = Path(__file__).parents[2] / "serving"


def chosen(threads, batch_size, mebibytes=700):
    return Measurement(Setting("float32", threads, batch_size, 16), 0.01, 0.02, 100.0, mebibytes * 2**20)


@pytest.fixture
def folder(tmp_path):
    for part in ("deploy", "config"):
        shutil.copytree(SERVING / part, tmp_path / part)
    return tmp_path


def texts(folder):
    return {file: file.read_text() for file in sorted(folder.rglob("*")) if file.is_file()}


def containers(folder):
    """The arguments, CPUs and memory limit of the server in each kind of file."""
    compose = yaml.safe_load((folder / "deploy/docker-compose.yml").read_text())["services"]["tf-serving"]
    yield compose["command"], compose["cpus"], compose["mem_limit"].removesuffix("m")
    deployment = yaml.safe_load((folder / "deploy/kubernetes/deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    kserve = yaml.safe_load((folder / "deploy/kserve/inference-service.yaml").read_text())
    for each in (container, kserve["spec"]["predictor"]["model"]):
        resources = each["resources"]
        yield (
            each["args"],
            int(resources["requests"]["cpu"]),
            resources["limits"]["memory"].removesuffix("Mi"),
        )


def test_every_kind_of_file_has_the_setting(folder):
    files = write_setting(folder, chosen(threads=8, batch_size=16))
    assert {file.name for file in files} == {
        "batching.config", "docker-compose.yml", "deployment.yaml", "inference-service.yaml",
    }  # fmt: skip
    for arguments, cpus, memory in containers(folder):
        assert {"--tensorflow_intra_op_parallelism=8", "--tensorflow_inter_op_parallelism=8"} <= {*arguments}
        assert {"--enable_batching=true", "--batching_parameters_file=/config/batching.config"} <= {
            *arguments
        }
        assert (cpus, memory) == (8, "1400")
    config = re.sub("#.*", "", (folder / "config/batching.config").read_text()).split("\n")
    fields = {line for line in config if line.strip()}
    assert fields == {
        "max_batch_size { value: 16 }",
        "batch_timeout_micros { value: 0 }",
        "max_enqueued_batches { value: 100 }",
        "num_batch_threads { value: 8 }",
        "pad_variable_length_inputs: false",
        *(f"allowed_batch_sizes: {size}" for size in (1, 2, 4, 8, 16)),
    }


def test_comments_and_other_services_are_kept(folder):
    before = texts(folder)
    write_setting(folder, chosen(threads=4, batch_size=4))
    write_setting(folder, chosen(threads=2, batch_size=1))  # what batching needed is commented out again
    after = texts(folder)
    changed = {
        (old, new)
        for file in before
        for old, new in zip(before[file].splitlines(), after[file].splitlines(), strict=False)
        if old != new and file.name != "batching.config"
    }
    assert all(re.search("cpus?:|mem_limit|memory|parallelism", old) for old, new in changed)
    for file in before:
        comments = [line for line in before[file].splitlines() if line.lstrip().startswith("#")]
        assert comments == [line for line in after[file].splitlines() if line.lstrip().startswith("#")]


def test_writing_twice_changes_nothing(folder):
    write_setting(folder, chosen(threads=4, batch_size=8))
    once = texts(folder)
    write_setting(folder, chosen(threads=4, batch_size=8))
    assert texts(folder) == once


def test_the_files_of_the_repository_have_the_setting_of_the_committed_plan(folder):
    plan = Plan.from_json((SERVING / "deploy/plan.json").read_text())
    assert Plan.from_json(plan.to_json()) == plan
    before = texts(folder)
    write_setting(folder, plan.for_latency)
    assert texts(folder) == before


def test_a_folder_without_a_server_is_refused(tmp_path):
    (tmp_path / "other.yaml").write_text("command: [--port=1]\n")
    (tmp_path / "batching.config").write_text("max_batch_size { value: 1 }\n")
    with pytest.raises(keras_bn.KerasBNError, match=r"no YAML file in .* give the folder serving"):
        write_setting(tmp_path, chosen(threads=2, batch_size=1))


def test_a_file_without_a_place_for_a_value_changes_nothing(folder):
    file = folder / "deploy/kubernetes/deployment.yaml"
    file.write_text(file.read_text().replace("limits: {memory: 2", "limits: {ephemeral-storage: 2"))
    file.write_text(re.sub(r"limits: \{memory: \w+\}", "limits: {}", file.read_text()))
    before = texts(folder)
    with pytest.raises(keras_bn.KerasBNError, match=r"deployment.yaml has nothing of the form"):
        write_setting(folder, chosen(threads=4, batch_size=8))
    assert texts(folder) == before
