"""The plan: what is measured, what is chosen, and that a real server's flags are asked for."""

import json
import stat
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner

import keras_bn
from keras_bn.profiling import in_process
from keras_bn.profiling.measurement import Measurement, Setting
from keras_bn.profiling.plan import Plan
from keras_bn.profiling.profile import profile
from keras_bn_cli.program import program


@pytest.fixture(scope="module")
def base_path(tmp_path_factory):
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="scores")(x))
    folder = tmp_path_factory.mktemp("models") / "digits"
    keras_bn.export(model, folder)
    keras_bn.export(model, folder, precision="bfloat16")
    return folder


def test_every_setting_is_measured_in_process(base_path):
    plan = profile(base_path, seconds=2, in_process=True, progress=False)
    settings = [each.setting for each in plan.measurements]
    assert {setting.precision for setting in settings} == {"float32", "bfloat16"}
    assert {setting.threads for setting in settings} >= {1, plan.cores}
    assert {(setting.batch_size, setting.clients) for setting in settings} == {
        (1, 1), (1, 4), (1, 16), (4, 4), (4, 16), (16, 16),
    }  # fmt: skip
    assert len(set(settings)) == len(settings)
    assert all(0 < each.median <= each.p99 and each.throughput > 0 for each in plan.measurements)
    assert "session in a process of its own" in str(plan)


def test_memory_does_not_depend_on_what_this_process_holds(base_path):
    setting = Setting("float32", 1, 1, 1)

    def memory():
        with in_process.engine(base_path / "1", setting) as measure:
            return measure(setting, 0.1).memory

    alone = memory()
    held = np.ones(2**25)  # 256 MiB
    # Two runs of the same program differ by a few MiB.
    assert alone > 0 and abs(memory() - alone) < held.nbytes / 4


def test_requests_are_those_of_the_warm_up(tmp_path):
    inputs = keras.Input((1,), name="word", dtype="string")
    x = keras.layers.Embedding(10, 3)(keras.layers.Hashing(10)(inputs))
    model, words = keras.Model(inputs, keras.layers.Flatten()(x)), np.array([["a"], ["bc"]], object)
    path = keras_bn.export(model, tmp_path / "m", examples=words, warmup=words)
    assert in_process.requests(path, 3)["word"].tolist() == [[b"a"], [b"bc"], [b"a"]]
    path = keras_bn.export(model, tmp_path / "m", examples=words, warmup=False)
    with pytest.raises(
        keras_bn.KerasBNError, match=r"takes strings.* given to keras_bn.export, as `examples`"
    ):
        in_process.requests(path, 3)


def test_a_version_that_cannot_be_run_says_why(base_path, tmp_path):
    version = tmp_path / "1"
    version.mkdir()
    (version / "saved_model.pb").write_bytes(b"no graph")
    setting = Setting("float32", 1, 1, 1)
    with (
        pytest.raises(keras_bn.KerasBNError, match=r"could not be run: .*saved_model"),
        in_process.engine(version, setting) as measure,
    ):
        measure(setting, 0.1)


def measurement(threads, batch_size, clients, median, throughput):
    setting = Setting("float32", threads, batch_size, clients)
    return Measurement(setting, median, 2 * median, throughput, 600 * 2**20)


def test_optima_of_latency_and_throughput_are_told_apart():
    slow, quick = measurement(1, 1, 1, 0.02, 50), measurement(2, 1, 1, 0.01, 100)
    most = measurement(1, 16, 16, 0.05, 300)
    plan = Plan("a test", 2, (slow, quick, most, measurement(1, 1, 4, 0.005, 120)))
    assert (plan.for_latency, plan.for_throughput) == (quick, most)
    text = str(plan)
    assert "--tensorflow_intra_op_parallelism=2" in plan.advice(quick)
    assert "batching" not in plan.advice(quick) and "--enable_batching=true" in plan.advice(most)
    assert 'cpu: "1", memory: 1200Mi' in plan.advice(most) and "mem_limit: 1200m" in text
    assert json.loads(plan.to_json())["for_throughput"]["setting"]["batch_size"] == 16
    picture = ElementTree.fromstring(plan.to_svg())
    assert len(picture.findall("{*}circle")) == len(plan.measurements) + 2


def test_command(base_path, tmp_path):
    arguments = [
        "profile",
        str(base_path),
        "--seconds",
        "1",
        "--in-process",
        "--svg",
        str(tmp_path / "plan.svg"),
    ]
    result = CliRunner().invoke(program, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "Lowest latency" in result.stdout and "Highest throughput" in result.stdout
    assert (tmp_path / "plan.svg").read_text().startswith("<svg")


def test_no_version(tmp_path):
    with pytest.raises(keras_bn.KerasBNError, match="holds no version of a model"):
        profile(tmp_path)


def test_through_a_server_on_path(base_path, tmp_path, monkeypatch):
    # The local server takes the flags and speaks the protocol of the binary that it stands in for.
    binary = tmp_path / "tensorflow_model_server"
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m keras_bn_serving.local_server "$@"\n')
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root}:{root / 'serving'}")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    monkeypatch.setattr("keras_bn.profiling.profile._BATCH_SIZES", (4,))  # one server, which merges requests
    monkeypatch.setattr("keras_bn.profiling.profile._CLIENTS", (1, 4))
    plan = profile(base_path / "1", seconds=3, progress=False)
    assert "tensorflow_model_server" in plan.measured_through
    assert [each.setting.clients for each in plan.measurements] == [4]
    assert plan.measurements[0].memory > 0
