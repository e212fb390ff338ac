"""Which children of a base path are versions, and which of them a policy chooses."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from keras_bn_serving.local_server import catalog


def _versions(base_path: Path, policy: str = "", children: tuple[str, ...] = ()) -> dict[int, str]:
    for child in children:
        (base_path / child).mkdir()
    config = model_server_config_pb2.ModelConfig(name="m", base_path=str(base_path))
    text_format.Parse(policy, config.model_version_policy)
    return {number: Path(path).name for number, path in catalog.versions(config).items()}


def test_only_whole_integers_are_versions(tmp_path: Path) -> None:
    children = (
        "1",
        "00000123",
        "20170111173521",
        "2.denied",
        "tmp-3",
        ".4",
        "v5",
        "99999999999999999999",
        "-7",
    )
    assert _versions(tmp_path, "all {}", children) == {
        1: "1",
        123: "00000123",
        20170111173521: "20170111173521",
        -7: "-7",
    }


def test_a_file_counts_too(tmp_path: Path) -> None:
    (tmp_path / "5").touch()
    assert _versions(tmp_path) == {5: "5"}


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("", {10}),
        ("latest {}", {10}),
        ("latest { num_versions: 2 }", {9, 10}),
        ("latest { num_versions: 9 }", {1, 9, 10}),
        ("all {}", {1, 9, 10}),
        ("specific { versions: 1 versions: 42 }", {1}),
        ("specific {}", set()),
    ],
)
def test_policies(tmp_path: Path, policy: str, chosen: set[int]) -> None:
    assert set(_versions(tmp_path, policy, ("1", "9", "10"))) == chosen


def test_one_of_two_names_of_a_number_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert set(_versions(tmp_path, "", ("1", "001"))) == {1}
    assert "Duplicate version directories" in caplog.text


def test_nothing_to_serve_is_logged_and_a_missing_path_raises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _versions(tmp_path) == {}
    assert "No versions of servable m found under base path" in caplog.text
    with pytest.raises(FileNotFoundError):
        _versions(tmp_path / "missing")
