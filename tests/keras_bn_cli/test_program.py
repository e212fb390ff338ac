"""The command line over real files: results, exit codes, and one line for a mistake."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from keras_bn_cli.program import program
from keras_bn_serving.local_server import flags


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained-like network without BN, data for it, and a file that is no model."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(2, name="logits"),
        ]
    )
    model.save(folder / "plain.keras")
    keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()]).save(folder / "normalized.keras")
    np.save(folder / "images.npy", np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype("float32"))
    (folder / "broken.keras").write_bytes(b"not a model")
    _damage(folder)
    (folder / "pictures").mkdir()
    for name, picture in zip("abc", np.random.default_rng(1).integers(256, size=(3, 9, 9, 3)), strict=True):
        keras.utils.save_img(folder / "pictures" / f"{name}.png", picture)
    return folder


class Unregistered(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def _damage(folder):
    """Files that are nearly right."""
    whole = bytearray((folder / "plain.keras").read_bytes())
    (folder / "cut.keras").write_bytes(whole[: len(whole) // 2])
    whole[300] ^= 255
    (folder / "flipped.keras").write_bytes(whole)
    keras.Sequential([keras.Input((2,)), Unregistered()]).save(folder / "unregistered.keras")
    (folder / "junk.npy").write_bytes(b"junk" * 30)
    (folder / "empty.npy").write_bytes(b"")
    images = np.load(folder / "images.npy")
    np.savez(folder / "other.npz", picture=images, id=np.arange(len(images)))
    (folder / "folder.keras").mkdir()


def keras_bn(*arguments):
    return CliRunner().invoke(program, [str(argument) for argument in arguments])


def test_retrofit_then_every_verb(folder):
    data = ("--data", folder / "images.npy")
    retrofitted = folder / "retrofitted.keras"
    done = keras_bn("retrofit", folder / "plain.keras", *data, "-o", retrofitted)
    assert done.exit_code == 0, done.output
    assert "conv" in done.output

    for verb, arguments in {"convert": (), "recalibrate": data, "fold": ()}.items():
        output = folder / f"{verb}.keras"
        done = keras_bn(verb, retrofitted, *arguments, "-o", output, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["function"] == verb
        assert output.exists()

    for verb, source, arguments in (
        ("freeze", retrofitted, ()),
        ("unfreeze", folder / "freeze.keras", ()),
        ("convert", retrofitted, ("--to", "group", *data, "--overwrite")),
    ):
        done = keras_bn(verb, source, *arguments, "-o", folder / f"{verb}.keras", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["function"] == verb

    images = np.load(folder / "images.npy")
    expected = keras.models.load_model(folder / "plain.keras").predict(images, verbose=0)
    folded = keras.models.load_model(folder / "fold.keras").predict(images, verbose=0)
    # Folding in float64 and rounding once: a few ulp of the largest output.
    np.testing.assert_allclose(folded, expected, atol=2e-6 * np.abs(expected).max())


def test_export_and_inspect(folder):
    done = keras_bn("export", folder / "plain.keras", folder / "served", "--json")
    assert done.exit_code == 0, done.output
    path = json.loads(done.stdout)["path"]
    assert keras_bn("inspect", path).exit_code == 0
    assert keras_bn("inspect", folder / "normalized.keras").exit_code in (0, 1)


def test_a_dry_run_writes_nothing(folder):
    before = set(folder.iterdir())
    done = keras_bn("retrofit", folder / "plain.keras", "--data", folder / "images.npy", "--dry-run")
    assert done.exit_code == 0, done.output
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("retrofit", "plain.keras"), 2, "--data"),
        (("retrofit", "missing.keras", "--data", "images.npy", "--dry-run"), 2, "does not exist"),
        (("fold", "broken.keras", "--dry-run"), 2, "broken.keras could not be loaded: it is corrupt"),
        (("fold", "cut.keras", "--dry-run"), 2, "cut.keras could not be loaded: it is corrupt"),
        (("fold", "flipped.keras", "--dry-run"), 2, "could not be loaded: it is corrupt (Bad CRC-32"),
        (("fold", "unregistered.keras", "--dry-run"), 2, "its class 'Unregistered' is not registered"),
        (("fold", "plain.keras", "--overwrite", "-o", "folder.keras"), 2, "is a folder; choose a file"),
        (("fold", "plain.keras", "-o", "no/such/out.keras"), 2, "The folder no/such does not exist"),
        (("inspect", "plain.keras", "--html", "no/such/page.html"), 2, "The folder no/such does not exist"),
        (("retrofit", "plain.keras", "--data", "junk.npy", "--dry-run"), 2, "junk.npy could not be read"),
        (("retrofit", "plain.keras", "--data", "empty.npy", "--dry-run"), 2, "empty.npy could not be read"),
        (("retrofit", "plain.keras", "--data", "other.npz", "--dry-run"), 2, "image"),
        (("fold", "plain.keras"), 2, "-o OUT.keras"),
        (("fold", "plain.keras", "-o", "plain.keras"), 2, "--overwrite"),
        (("fold", "plain.keras", "-o", "out.h5"), 2, ".keras file"),
        (("fold", "plain.keras", "--dry-run", "--import", "no.such.module"), 2, "PYTHONPATH"),
        (("retrofit", "plain.keras", "--data", "broken.keras", "--dry-run"), 2, "could not be read as data"),
        (("export", "plain.keras", "served", "--version", "-1"), 2, "--version"),
        (("no-such-verb",), 2, "No such command"),
    ],
)
def test_a_mistake_gets_one_line_and_an_exit_code(folder, arguments, code, words):
    paths = {path.name: path for path in folder.iterdir()} | {"missing.keras": folder / "missing.keras"}
    done = keras_bn(*(paths.get(argument, argument) for argument in arguments))
    assert done.exit_code == code, done.output
    assert words in done.output
    assert "Traceback" not in done.output
    assert "unsafely" not in done.output  # NumPy's advice on any file it does not know
    last_line = done.output.splitlines()[-1]  # after the progress bar, if it came so far
    assert "Usage: " in done.output or (
        last_line.startswith("Error: ") and words in last_line and len(last_line) < 500
    )


@pytest.mark.parametrize("arguments", [("fold", "-o", "out.keras"), ("inspect", "--html", "page.html")])
def test_an_output_that_may_not_be_written_is_refused_before_the_work(folder, arguments, monkeypatch):
    # Not by permissions, which do not hold for root.
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr("keras.models.load_model", None)
    verb, option, output = arguments
    done = keras_bn(verb, folder / "plain.keras", option, folder / output)
    assert done.exit_code == 2
    assert f"{folder / output} cannot be written" in done.output


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(folder, tmp_path, monkeypatch):
    def interrupted(model, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    output = tmp_path / "out.keras"
    output.write_bytes(b"the old one")
    monkeypatch.setattr("keras.Model.save", interrupted)
    done = keras_bn("fold", folder / "plain.keras", "-o", output, "--overwrite")
    assert done.exit_code == 130 and "Interrupted." in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["out.keras"]
    assert output.read_bytes() == b"the old one"


def test_an_interrupt_during_the_work_writes_nothing(folder, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    donor = (folder / "plain.keras").read_bytes()
    monkeypatch.setattr("keras_bn.surgery.observe.Observer.moments", interrupted)
    data = ("--data", folder / "images.npy")
    done = keras_bn("retrofit", folder / "plain.keras", *data, "-o", tmp_path / "out.keras")
    assert done.exit_code == 130 and "Interrupted." in done.output
    assert not list(tmp_path.iterdir())
    assert (folder / "plain.keras").read_bytes() == donor


@pytest.mark.parametrize("verb", ["inspect", "retrofit", "recalibrate", "fold", "convert", "export"])
def test_help(verb):
    done = keras_bn(verb, "--help")
    assert done.exit_code == 0 and f"keras-bn {verb} " in done.output


def test_a_dry_run_of_every_verb_prints_json_and_writes_nothing(folder, tmp_path):
    layers = [keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization(name="bn")]
    keras.Sequential(layers).save(tmp_path / "model.keras")
    np.save(tmp_path / "data.npy", np.ones((4, 3), "float32"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    data = ("--data", tmp_path / "data.npy")
    for verb, arguments in {"convert": (), "recalibrate": data, "fold": ()}.items():
        done = keras_bn(verb, tmp_path / "model.keras", *arguments, "--dry-run", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["function"] == verb
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_statistics_that_are_nan(folder, tmp_path):
    """Folding refuses them, inspection says so and exits with 1."""
    layers = [keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization(name="bn")]
    model = keras.Sequential(layers)
    model.layers[-1].moving_mean.assign([np.nan, 0])
    model.save(tmp_path / "model.keras")
    done = keras_bn("fold", tmp_path / "model.keras", "-o", tmp_path / "out.keras")
    assert done.exit_code == 2 and "moving_mean of 'bn' holds NaN" in done.output
    assert not (tmp_path / "out.keras").exists()
    done = keras_bn("inspect", tmp_path / "model.keras", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["layers"][0]["problems"] == ["NaN or infinity in mean"]


def test_an_image_that_cannot_be_decoded_is_named(folder, tmp_path):
    keras.utils.save_img(tmp_path / "a.png", np.zeros((9, 9, 3)))
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    done = keras_bn("retrofit", folder / "plain.keras", "--data", tmp_path, "--dry-run")
    assert done.exit_code == 2
    assert f"Error: {tmp_path / 'b.jpg'} could not be decoded as an image of 3 channels" in done.output


def test_an_error_of_tensorflow_gets_one_line(folder, monkeypatch):
    def fail(model):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory\nin node 3")

    monkeypatch.setattr("keras_bn.fold", fail)
    done = keras_bn("fold", folder / "plain.keras", "--dry-run")
    assert (done.exit_code, done.output) == (2, "Error: TensorFlow: out of memory\n")


def test_another_error_is_not_hidden(folder, monkeypatch):
    def fail(model):
        raise ZeroDivisionError

    monkeypatch.setattr("keras_bn.fold", fail)
    assert isinstance(keras_bn("fold", folder / "plain.keras", "--dry-run").exception, ZeroDivisionError)


def test_a_folder_of_images_is_data(folder):
    done = keras_bn(
        "retrofit",
        folder / "plain.keras",
        "--data",
        folder / "pictures",
        "--preprocessing",
        "tf",
        "--dry-run",
    )
    assert done.exit_code == 0, done.output


@pytest.fixture
def versions(tmp_path):
    """A folder with one version, which holds no graph."""
    (tmp_path / "digits" / "1").mkdir(parents=True)
    (tmp_path / "digits" / "1" / "saved_model.pb").touch()
    return tmp_path / "digits"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
def test_serve_refuses_a_port_that_is_taken_on_its_host(versions, flag, host):
    with socket.socket() as taken:
        taken.bind(("127.0.0.2" if host == "127.0.0.2" else "127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = keras_bn("serve", versions, f"{flag}={port}", f"--host={host}")
        assert done.exit_code == 2
        assert f"Port {port} of {host} cannot be used" in done.output
        assert flag in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Usage: keras-bn serve"),
        (("digits/1",), "give the folder that holds the versions, "),
        (("digits", "--prot=8500"), "No such flag: --prot=8500. Did you mean --port?"),
        (("digits", "--port", "8500"), "--port needs a value, written --port=VALUE"),
        (("digits", "--port=many"), "Couldn't interpret value many for flag port"),
        (("digits", "--host=no such host"), "--host=no such host"),
        (("missing",), "missing does not exist"),
        (("model.keras",), "model.keras is a file; export it first: keras-bn export"),
        ((".",), "holds no version; write one: keras-bn export"),
    ],
)
def test_serve_refuses_a_wrong_command_line_at_once(versions, monkeypatch, arguments, words):
    monkeypatch.chdir(versions.parent)
    (versions.parent / "model.keras").touch()
    done = CliRunner().invoke(program, ["serve", *arguments], prog_name="keras-bn")
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())


def test_help_of_serve_lists_every_flag():
    done = keras_bn("serve", "--help")
    assert done.exit_code == 0
    assert all(f"--{name}=" in done.output for name, *_ in flags.described())
    assert "FOLDER" in done.output


COMMANDS = list(program.commands)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_no_backend_and_prints_nothing_else(arguments):
    code = f"""
import sys
sys.argv = ["keras-bn", *{arguments!r}]
try:
    import keras_bn_cli
    keras_bn_cli.main()
finally:
    heavy = {{"tensorflow", "keras", "jax", "torch", "keras_bn"}} & set(sys.modules)
    assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("keras-bn, version" if "--version" in arguments else "Usage: keras-bn")


def test_a_command_prints_none_of_tensorflows_log_lines(folder):
    command = [sys.executable, "-m", "keras_bn_cli", "inspect", folder / "normalized.keras"]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""


def test_ctrl_c_while_the_backend_is_imported_ends_without_a_traceback(folder):
    code = """
import builtins, os, signal, sys
# What is started in the background ignores the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
original = builtins.__import__
def interrupting(name, *arguments, **options):
    if name == "keras":
        os.kill(os.getpid(), signal.SIGINT)
    return original(name, *arguments, **options)
builtins.__import__ = interrupting
import keras_bn_cli
sys.argv = ["keras-bn", "fold", sys.argv[1], "--dry-run"]
keras_bn_cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "plain.keras"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_inspect_writes_its_page_to_standard_output(folder):
    done = keras_bn("inspect", folder / "normalized.keras", "--html", "-")
    assert done.exit_code in (0, 1)
    assert done.stdout.lower().startswith("<!doctype html")
    done = keras_bn("inspect", folder / "normalized.keras", "--html", "-", "--json")
    assert done.exit_code == 2 and "--html a file" in done.output


def test_the_advice_of_inspect_is_a_command_that_works(folder, tmp_path):
    data = tmp_path / "other data.npy"
    np.save(data, np.random.default_rng(0).normal(3, 2, (64, 3)).astype("float32"))
    model = folder / "normalized.keras"
    done = keras_bn("inspect", model, "--data", data)
    assert done.exit_code == 1, done.output
    words = shlex.split(done.stdout.split("On the command line: ")[1].splitlines()[0])
    words[-1] = str(tmp_path / words[-1])
    assert keras_bn(*words[1:]).exit_code == 0
    assert keras_bn("inspect", words[-1], "--data", data).exit_code == 0


def test_inspect_refuses_a_page_of_a_saved_model(folder):
    done = keras_bn("inspect", folder / "pictures", "--html", folder / "page.html")
    assert done.exit_code == 2 and "--html is for Keras models" in done.output
    assert not (folder / "page.html").exists()


def test_recalibration_in_shards(folder, tmp_path):
    model, data = folder / "normalized.keras", tmp_path / "data.npy"
    np.save(data, np.random.default_rng(0).normal(3, 2, (64, 3)).astype("float32"))
    common = (model, "--data", data, "--estimator", "batch", "--batch-size", "8")
    for i in range(2):
        done = keras_bn("recalibrate", *common, "--shard", f"{i}/2", "--save", tmp_path / f"{i}.stats")
        assert done.exit_code == 0, done.output
    done = keras_bn("merge", tmp_path / "1.stats", "-o", tmp_path / "half.stats")
    assert done.exit_code == 0 and "Shards still missing: 0" in done.output
    done = keras_bn("merge", tmp_path / "1.stats", tmp_path / "0.stats", "-o", tmp_path / "all.stats")
    assert done.exit_code == 0 and "2 of 2 shards" in done.output, done.output
    applied = ("--statistics", tmp_path / "all.stats", "-o", tmp_path / "applied.keras")
    assert keras_bn("recalibrate", model, *applied).exit_code == 0
    assert keras_bn("recalibrate", *common, "-o", tmp_path / "whole.keras").exit_code == 0
    one, other = (keras.models.load_model(tmp_path / f"{name}.keras") for name in ("applied", "whole"))
    for left, right in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("recalibrate", "normalized.keras", "-o", "out.keras"), "Give --data to estimate from"),
        (("recalibrate", "normalized.keras", "--data", "images.npy", "--shard", "2/2"), "is not I/N"),
        (
            ("recalibrate", "normalized.keras", "--data", "images.npy", "--shard", "0/2"),
            "--shard needs --save",
        ),
        (("merge", "images.npy", "-o", "out.stats"), "images.npy is not a file of population statistics"),
        (("drift", "served", "images.npy"), "--reference DATA"),
    ],
)
def test_wrong_arguments_of_recalibrate_merge_and_drift(folder, tmp_path, arguments, words):
    if arguments[0] == "drift":
        keras_bn("export", folder / "plain.keras", folder / "served")
    done = keras_bn(*(folder / a if (folder / a).exists() else a for a in arguments))
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())


def test_drift_exits_with_1_where_the_data_has_drifted(folder, tmp_path):
    images = np.load(folder / "images.npy")
    reference = ("--reference", folder / "images.npy")
    assert keras_bn("export", folder / "plain.keras", tmp_path / "m", *reference).exit_code == 0
    np.save(tmp_path / "other.npy", images + 2)
    assert keras_bn("drift", tmp_path / "m", folder / "images.npy").exit_code == 0
    done = keras_bn("drift", tmp_path / "m", tmp_path / "other.npy", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["drifted"] is True
    with_model = ("--model", folder / "plain.keras")
    assert keras_bn("drift", tmp_path / "m", folder / "images.npy", *with_model).exit_code == 0
