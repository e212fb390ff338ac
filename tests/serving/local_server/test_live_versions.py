"""Versions and configurations that come, go and break under a running server: what is served stays served."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from tests.serving.golden.process import Server
from tests.serving.local_server.asking import add, load, predict, states, until

Start = Callable[..., Server]


def test_hot_swap_under_load_fails_no_request(models: Path, start: Start, tmp_path: Path) -> None:
    base = tmp_path / "live"
    add(base, models / "three" / "1", 1)
    server = start(model_name="m", model_base_path=base)
    with load(server) as failures:
        for version in (2, 3):
            add(base, models / "three" / str(version), version)
            until(lambda version=version: states(server).get(version) == "AVAILABLE")
            shutil.rmtree(base / str(version - 1))
        until(lambda: set(states(server).values()) == {"END", "AVAILABLE"})
    assert failures == []
    assert predict(server) == [4.0]


def test_withdrawing_a_version_under_load_fails_no_request(
    models: Path, start: Start, tmp_path: Path
) -> None:
    base = tmp_path / "live"
    for version in (1, 3):
        add(base, models / "three" / str(version), version)
    server = start(model_name="m", model_base_path=base)
    with load(server) as failures:
        shutil.rmtree(base / "3")
        until(lambda: states(server) == {1: "AVAILABLE", 3: "END"})
    assert failures == []
    assert predict(server) == [2.0]


def test_reload_under_load_fails_no_request(models: Path, start: Start) -> None:
    server = start(model_name="m", model_base_path=models / "three")

    def reload(channel: grpc.Channel, *names: str) -> None:
        request = model_management_pb2.ReloadConfigRequest()
        for name in names:
            request.config.model_config_list.config.add(
                name=name, base_path=str(models / "three"), model_platform="tensorflow"
            )
        model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=60)

    with grpc.insecure_channel(f"localhost:{server.port}") as channel, load(server) as failures:
        for _ in range(3):
            reload(channel, "m", "other")
            assert predict(server, "other") == [4.0]
            reload(channel, "m")
    assert failures == []


def test_a_configuration_file_edited_under_load_fails_no_request(
    models: Path, start: Start, tmp_path: Path
) -> None:
    config = tmp_path / "models.config"

    def name(*names: str) -> None:
        entry = 'config {{ name: "{}" base_path: "{}/three" model_platform: "tensorflow" }}'
        entries = " ".join(entry.format(one, models) for one in names)
        aside = config.with_suffix(".new")
        aside.write_text(f"model_config_list {{ {entries} }}")
        aside.rename(config)

    def served(name: str) -> bool:
        with contextlib.suppress(urllib.error.HTTPError):
            return predict(server, name) == [4.0]
        return False

    name("m")
    server = start(model_config_file=config, model_config_file_poll_wait_seconds=1)
    with load(server) as failures:
        name("m", "other")
        until(lambda: served("other"))
        config.write_text("model_config_list { config { nonsense")
        until(lambda: "Invalid protobuf file" in server.stderr.read_text())
        assert served("other")
        name("m")
        until(lambda: not served("other"))
    assert failures == []


def test_a_version_that_appears_piece_by_piece_is_served_when_it_is_whole(
    models: Path, start: Start, tmp_path: Path
) -> None:
    base = tmp_path / "live"
    add(base, models / "three" / "1", 1)
    server = start(
        model_name="m", model_base_path=base, max_num_load_retries=50, load_retry_interval_micros=100_000
    )
    whole = (models / "three" / "2" / "saved_model.pb").read_bytes()
    (base / "2").mkdir()
    until(lambda: states(server) == {1: "AVAILABLE", 2: "LOADING"})
    half = base / "2" / "saved_model.pb"
    half.write_bytes(whole[: len(whole) // 2])
    until(lambda: "Can't parse" in server.stderr.read_text())
    assert predict(server) == [2.0]
    half.write_bytes(whole)
    until(lambda: states(server) == {1: "END", 2: "AVAILABLE"})
    assert predict(server) == [3.0]


def test_bad_versions_leave_the_good_one(models: Path, start: Start, tmp_path: Path) -> None:
    base = tmp_path / "live"
    add(base, models / "three" / "1", 1)
    server = start(model_name="m", model_base_path=base, max_num_load_retries=0)
    (base / "2").mkdir()
    (base / "2" / "saved_model.pb").write_bytes(b"\xff" * 100)
    (base / "3").symlink_to(tmp_path / "nowhere")
    until(lambda: states(server) == {1: "AVAILABLE", 3: "END"} or states(server).get(2) == "END")
    (base / "4").write_text("a file")
    (base / "5").mkdir()
    until(lambda: states(server).get(5) == "END")
    assert predict(server) == [2.0]
    shutil.rmtree(base)
    until(lambda: "Could not find base path" in server.stderr.read_text())
    assert predict(server) == [2.0], "a base path that vanishes unloads nothing"


# A server that file permissions bind, root or not: without the capabilities that override them.
_BOUND = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-m", "keras_bn_serving.local_server", *sys.argv[1:]])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "prctl"), reason="needs Linux")
def test_versions_that_may_not_be_read_leave_the_good_one(models: Path, tmp_path: Path) -> None:
    base = tmp_path / "live"
    add(base, models / "three" / "1", 1)
    command = [sys.executable, "-c", _BOUND]
    flags = ["--model_name=m", f"--model_base_path={base}", "--max_num_load_retries=0"]
    with Server(flags, tmp_path / "bound", command=command) as server:
        assert server.wait_for_ports(60), server.stderr.read_text()
        for version, part in ((2, "saved_model.pb"), (3, "")):
            add(tmp_path / "aside", models / "three" / str(version), version)
            (tmp_path / "aside" / str(version) / part).chmod(0)
            (tmp_path / "aside" / str(version)).rename(base / str(version))
            until(lambda version=version: states(server).get(version) == "END")
            assert predict(server) == [2.0]
        base.chmod(0)
        until(lambda: "Could not find base path" in server.stderr.read_text())
        assert predict(server) == [2.0]
        assert states(server)[1] == "AVAILABLE"
        base.chmod(0o700)
        add(base, models / "three" / "3", 4)
        until(lambda: states(server).get(4) == "AVAILABLE")
        assert predict(server) == [4.0]
        (base / "3").chmod(0o700)  # for whoever clears up


_EXPORT_INTO_TWO_MIB = """
import subprocess, sys
from pathlib import Path
import keras, numpy as np
import keras_bn
from keras_bn_serving.client import Client
from keras_bn_serving.local_server import launch

base = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", base], check=True)

def model(width):
    return keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(width)])

keras_bn.export(model(4), base)
with launch(base, "m", file_system_poll_wait_seconds=1) as server:
    with Client(f"grpc://localhost:{server.port}", model="m") as client:
        try:
            keras_bn.export(model(10**6), base)
        except keras_bn.KerasBNError as error:
            print(error)
        print(sorted(path.name for path in base.iterdir()), client.predict(np.ones((1, 8))).shape)
    keras_bn.export(model(5), base)
    with Client(f"grpc://localhost:{server.port}", model="m") as client:
        print(client.wait_until_ready(30, version=2), client.predict(np.ones((1, 8))).shape)
"""


def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_no_version_and_the_old_one_served(tmp_path: Path) -> None:
    if not _may_mount():
        pytest.skip("needs unshare, and the right to mount a file system of 2 MiB")
    command = ["unshare", "-rm", sys.executable, "-c", _EXPORT_INTO_TWO_MIB, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    refused, kept, repaired = done.stdout.strip().splitlines()
    assert refused.startswith(f"could not write a version into {tmp_path}")
    assert "space" in refused
    assert kept == "['1'] (1, 4)"
    assert repaired == "2 (1, 5)"
