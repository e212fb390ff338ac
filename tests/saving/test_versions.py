"""Version folders: a whole one or none, whatever happens while it is written."""

import os
import resource
import stat

import pytest

from keras_bn.errors import KerasBNError
from keras_bn.saving.versions import publish


def fill(folder):
    (folder / "saved_model.pb").write_bytes(b"model")
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "requests").write_bytes(b"request")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_next_free_version_is_one_more_than_the_highest(tmp_path):
    # What TensorFlow Serving takes for a version, and what it does not.
    for name in ("3", "0007", "tmp-9", "10.old", ".hidden", "-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "8").write_text("a file, but the server would try to load it")
    assert publish(tmp_path, None, fill).name == "9"


def test_first_version_is_1_and_the_folders_are_made(tmp_path):
    path = publish(tmp_path / "models" / "vgg", None, fill)
    assert path == tmp_path / "models" / "vgg" / "1"
    assert files(tmp_path / "models" / "vgg") == [
        "1",
        "1/assets.extra",
        "1/assets.extra/requests",
        "1/saved_model.pb",
    ]


def test_while_it_is_written_no_server_sees_a_version(tmp_path):
    seen = []

    def write(folder):
        fill(folder)
        seen.extend(os.listdir(tmp_path))

    publish(tmp_path, 5, write)
    assert len(seen) == 1
    with pytest.raises(ValueError):
        int(seen[0])


def test_permissions_are_those_of_any_new_folder(tmp_path):
    # A folder of mkdtemp is its owner's alone, and a server in a container is somebody else.
    (tmp_path / "ordinary").mkdir()
    path = publish(tmp_path, 1, fill)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError, SystemExit])
def test_failure_leaves_nothing_behind(tmp_path, error):
    def write(folder):
        fill(folder)
        raise error("stop")

    with pytest.raises(KerasBNError if error is OSError else error, match="stop"):
        publish(tmp_path / "a" / "b", None, write)
    assert files(tmp_path) == []


def test_failure_keeps_what_was_there(tmp_path):
    publish(tmp_path, 1, fill)
    before = files(tmp_path)

    def write(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, None, write)
    assert files(tmp_path) == before


def test_full_disk(tmp_path):
    def write(folder):
        (folder / "saved_model.pb").write_bytes(bytes(10**6))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, hard))
    try:
        with pytest.raises(KerasBNError, match="could not write a version into"):
            publish(tmp_path, 1, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == []


def test_version_taken_by_another_export_meanwhile(tmp_path):
    def write(folder):
        fill(folder)
        if not (tmp_path / "1").exists():
            publish(tmp_path, 1, fill)

    assert publish(tmp_path, None, write).name == "2"
    (tmp_path / "1" / "saved_model.pb").unlink()
    with pytest.raises(KerasBNError, match="version 2 exists already"):
        publish(tmp_path, 2, fill)


@pytest.mark.parametrize("version", [-1, 2**63, 1.0, "1", True])
def test_what_is_no_version(tmp_path, version):
    with pytest.raises(KerasBNError, match="version must be an integer from 0"):
        publish(tmp_path, version, fill)
    assert files(tmp_path) == []


def test_largest_version_leaves_no_next_one(tmp_path):
    publish(tmp_path, 2**63 - 1, fill)
    with pytest.raises(KerasBNError, match="version must be an integer"):
        publish(tmp_path, None, fill)


@pytest.mark.parametrize("name", ["4", "04"])
def test_existing_version_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(KerasBNError, match=f"version 4 exists already as .*{name}"):
        publish(tmp_path, 4, fill)
    assert files(tmp_path) == [name]


def test_base_path_that_is_a_file(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(KerasBNError, match="is a file"):
        publish(tmp_path / "model", None, fill)


def test_base_path_that_is_not_local():
    with pytest.raises(KerasBNError, match="not a local folder"):
        publish("gs://bucket/model", None, fill)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="/proc is where not even root can write")
def test_base_path_that_cannot_be_written():
    with pytest.raises(KerasBNError, match="could not write a version into /proc"):
        publish("/proc/self/model", None, fill)
