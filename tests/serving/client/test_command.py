"""The command line, against the local server: what it prints, its exit codes, and no traceback."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from keras_bn_serving.client.command import query


@pytest.fixture
def run(address):
    def invoke(*arguments, **options):
        return CliRunner().invoke(
            query, ["--url", address, "--model", "affine", "--timeout", "60", *arguments], **options
        )

    return invoke


def answer(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_json_as_text_file_and_standard_input(run, tmp_path):
    text = "[[1, 2, 3]]"
    (tmp_path / "x.json").write_text(text)
    for result in (run(text), run(str(tmp_path / "x.json")), run("-", input=text)):
        assert answer(result) == [[3.0, 6.0, 9.0]]
    assert answer(run('{"x": [[1, 2, 3]]}', "--label", "stable", "--output", "y")) == [[2.0, 4.0, 6.0]]
    assert answer(run(text, "--version", "1")) == [[2.0, 4.0, 6.0]]


def test_numpy_files_in_and_out(run, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    result = run(str(tmp_path / "x.npy"), "--save", str(tmp_path / "y.npy"))
    assert result.exit_code == 0
    assert result.output == ""
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.full((2, 3), 3, np.float32))
    np.savez(tmp_path / "x.npz", x=np.ones((1, 3)))
    assert answer(run(str(tmp_path / "x.npz"))) == [[3.0, 3.0, 3.0]]


def test_several_outputs_strings_and_examples(run):
    result = run('{"a": [1], "b": ["é"]}', "--model", "many")
    assert answer(result) == {"length": [3], "text": ["éé"], "raw_bytes": ["é"], "even": [False]}
    result = run('{"a": [1], "b": ["s"]}', "--model", "many", "--output", "even", "--output", "length")
    assert answer(result) == {"even": [False], "length": [2]}
    assert answer(run("[0.1, NaN]", "--model", "echo", "--signature", "float64"))[0] == 0.1
    example = '[{"x": 0.5, "name": "cat"}]'
    assert answer(run(example, "--model", "examples", "--method", "classify")) == [
        [["cat", 0.5], ["other", -0.5]]
    ]
    assert answer(run(example, "--model", "examples", "--method", "regress", "--signature", "regress")) == [
        1.0
    ]


def test_an_image_is_its_bytes_or_its_pixels(run, tmp_path):
    path = tmp_path / "image.png"
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    Image.fromarray(pixels).save(path)
    result = run(str(path), "--model", "echo", "--signature", "string", "--save", str(tmp_path / "sent.npy"))
    assert result.exit_code == 0
    sent = np.load(tmp_path / "sent.npy", allow_pickle=True)
    assert sent.tolist() == [path.read_bytes()]
    assert answer(run(str(path), "--model", "echo", "--signature", "uint8")) == pixels[None].tolist()
    scaled = run(str(path), "--model", "echo", "--signature", "float32", "--scale", "0.5")
    assert answer(scaled) == (pixels[None] / 2).tolist()


def test_status_metadata_and_waiting(run):
    assert [entry["version"] for entry in answer(run("--status", "--wait", "5"))] == [2, 1]
    assert answer(run("--metadata"))["signatures"]["serving_default"]["inputs"]["x"]["shape"] == [None, 3]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["[[1, 2]]"], 2, "INVALID_ARGUMENT: input 'x' should be float32 (None, 3)"),
        (["[[1, 2, 3]]", "--model", "none"], 2, "NOT_FOUND: Servable not found for request: Latest(none)"),
        (["[[1, 2, 3]]", "--signature", "none"], 2, "it offers"),
        (["[[1, 2, 3]]", "--timeout", "-1"], 2, "timeout should be a positive number"),
        (["cat"], 2, "not JSON, nor the name of a .json, .npy, .npz or image file"),
        (["none.json"], 2, "none.json cannot be read: No such file"),
        (["none.npy"], 2, "none.npy cannot be read"),
        (["none.png"], 2, "none.png cannot be read: no such file"),
        (["--label", "stable"], 2, "INPUT is missing"),
        (["[[1, 2, 3]]", "--save", "/nowhere/y.npy"], 2, "/nowhere/y.npy cannot be written: No such file"),
        (
            ["--status", "--wait", "0.3", "--version", "9"],
            2,
            "DEADLINE_EXCEEDED: model affine is not available",
        ),
        (["[[1, 2, 3]]", "--label", "stable", "--version", "1"], 2, "not both"),
        (["1", "--version", "one"], 2, "'one' is not a valid integer"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(run, arguments, code, words):
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


def test_files_that_are_broken(run, tmp_path):
    for name in ("x.json", "x.npy", "x.npz", "x.png"):
        (tmp_path / name).write_bytes(b"\x00broken")
        result = run(str(tmp_path / name), "--model", "echo", "--signature", "float32")
        assert result.exit_code == 2, result.output
        assert "Error" in result.output


def test_the_model_must_be_named():
    result = CliRunner().invoke(query, ["[1]"])
    assert result.exit_code == 2
    assert "Missing option '--model'" in result.output


def test_no_server(free_port):
    result = CliRunner().invoke(query, ["--url", f"http://localhost:{free_port}", "--model", "m", "[1]"])
    assert result.exit_code == 2
    assert "UNAVAILABLE: no answer from http://localhost" in result.output


def test_it_runs_as_a_module_and_teaches():
    command = [sys.executable, "-m", "keras_bn_serving.client"]
    result = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    for word in ("Examples:", "batch.npy", "--metadata", "--wait", "exit code"):
        assert word in result.stdout
    nothing = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Usage:" in nothing.stdout + nothing.stderr


def test_the_answer_goes_to_standard_output_alone(run):
    result = run("[[1, 2, 3]]")
    assert json.load(io.StringIO(result.stdout)) == [[3.0, 6.0, 9.0]]
    assert result.stderr == ""
