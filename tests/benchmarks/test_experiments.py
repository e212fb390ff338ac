"""The experiments: what they share, their command line and its mistakes, and a few in their fast setting."""

import importlib.util
import json
import sys

import keras
import matplotlib
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.experiments import data, plots, registry, tables, training
from benchmarks.experiments.__main__ import RESULTS, main
from benchmarks.experiments.experiment import Experiment
from benchmarks.experiments.results import Results
from keras_bn import BatchNormalization, KerasBNError, recalibrate


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture
def cli(tmp_path):
    def call(*arguments):
        return CliRunner().invoke(main, [*arguments, "--output", str(tmp_path)])

    return call


@pytest.fixture
def counted(monkeypatch):
    """An experiment of two variants whose runs are counted and may be interrupted after `limit` of them."""
    calls, state = [], {"limit": None}

    def run(variant, seed, settings, data):
        if len(calls) == state["limit"]:
            raise KeyboardInterrupt
        calls.append((variant, seed))
        return {"step": [0, 1], "accuracy": [0.1, np.float32(0.5)], "seed": np.int64(seed)}

    def draw(results):
        figure, (axes,) = plots.panels()
        plots.curve(axes, [0, 1], results.values("a", "accuracy"), "a")
        return figure

    experiment = Experiment(
        fast={"seeds": 2, "rate": 0.1},
        full={"seeds": 2, "rate": 0.2},
        variants=lambda settings: ["a", "b"],
        run=run,
        draw=draw,
        table=lambda results: tables.accuracies(results, ["a", "b"], 0.5),
    )
    monkeypatch.setattr(registry, "load", lambda name: experiment)
    return calls, state


def test_list_names_every_experiment_in_one_line():
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == list(registry.EXPERIMENTS)


@pytest.mark.parametrize("name", registry.EXPERIMENTS)
def test_settings_of_every_experiment_have_the_same_keys(name):
    experiment = registry.load(name)
    assert experiment.fast.keys() == experiment.full.keys() >= {"seeds"}
    assert len(set(experiment.variants(experiment.full))) == len(experiment.variants(experiment.full))
    assert json.loads(json.dumps(experiment.full)) == experiment.full


def test_a_copy_is_evaluated_with_its_own_weights(digits):
    model = keras.Sequential([keras.Input((8, 8, 1)), BatchNormalization(), keras.layers.Flatten()])
    images = 3 * digits.x_test[:20]
    before = training.predict(model, images)
    copy = recalibrate(model, images, progress=False).model
    np.testing.assert_array_equal(training.predict(copy, images), np.array(copy(images), "float64"))
    assert np.abs(training.predict(copy, images) - before).max() > 0.1


def test_unknown_experiment_lists_the_known(cli):
    result = cli("lenett")
    assert result.exit_code == 1
    assert "lenett" in result.output and all(name in result.output for name in registry.EXPERIMENTS)


def test_unknown_data_set_lists_the_known(cli, tmp_path):
    result = cli("lenet", "--data", "cifar")
    assert result.exit_code == 1
    assert "cifar" in result.output and "digits, mnist" in result.output
    assert not list(tmp_path.iterdir())


def test_missing_matplotlib_names_the_extra(cli, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = cli("lenet")
    assert result.exit_code == 1
    assert "matplotlib is not installed: pip install 'keras-bn[experiments]'" in result.output


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(KerasBNError, match=r"scikit-learn.*keras-bn\[experiments\]"):
        data.load("digits")


def test_mnist_that_cannot_be_downloaded_says_what_to_do(monkeypatch):
    def fail():
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    with pytest.raises(KerasBNError, match=r"mnist\.npz.*--data digits"):
        data.load("mnist")


def test_mnist_has_the_form_of_the_digits(monkeypatch, digits):
    images, labels = np.full((3, 28, 28), 255, "uint8"), np.arange(3, dtype="uint8")
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: ((images, labels), (images, labels)))
    for mnist, expected in zip(data.load("mnist"), digits, strict=True):
        assert mnist.dtype == expected.dtype and mnist.ndim == expected.ndim
        assert mnist.max() == (1.0 if mnist.ndim == 4 else 2)


def test_mnist_runs_through_an_experiment(cli, tmp_path, monkeypatch, digits):
    # The digits three times as large, with a margin: what a download would bring, in small.
    images = [np.pad(np.kron(x[..., 0], np.full((3, 3), 255)), ((0, 0), (2, 2), (2, 2))) for x in digits[::2]]
    scans = [(x.astype("uint8"), y.astype("uint8")) for x, y in zip(images, digits[1::2], strict=True)]
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: scans)
    result = cli("mnist_4_1", "--data", "mnist")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "mnist_4_1-mnist.json").read_text())
    assert document["data"] == "mnist" and "--data mnist" in document["command"]
    last = {run["variant"]: run["result"]["accuracy"][-1] for run in document["runs"]}
    assert last["with BN"] > 0.8


def test_digits_are_split_with_no_image_on_both_sides(digits):
    assert len(digits.x_train) + len(digits.x_test) == 1797
    train = {image.tobytes() for image in digits.x_train}
    assert not any(image.tobytes() in train for image in digits.x_test)


def test_interrupted_experiment_resumes_with_the_missing_runs(cli, counted):
    calls, state = counted
    state["limit"] = 3
    interrupted = cli("any")
    assert interrupted.exit_code == 130
    assert "the same command resumes after 3 runs" in interrupted.output
    state["limit"] = None
    resumed = cli("any")
    assert resumed.exit_code == 0
    assert "has 3 runs already" in resumed.output
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_more_seeds_extend_the_runs_that_are_there(cli, counted, tmp_path):
    calls, _ = counted
    cli("any", "--seeds", "1")
    cli("any", "--seeds", "3")
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    document = json.loads((tmp_path / "any.json").read_text())
    assert document["command"].endswith("any --fast --data digits --seeds 3")
    assert document["runs"][0].keys() == {"variant", "seed", "versions", "result"}
    assert document["runs"][0]["result"] == {"step": [0, 1], "accuracy": [0.1, 0.5], "seed": 0}


def test_runs_of_other_settings_are_refused_and_kept(cli, counted, tmp_path):
    cli("any", "--fast")
    before = (tmp_path / "any.json").read_bytes()
    result = cli("any", "--full")
    assert result.exit_code == 1
    assert "rate 0.1 instead of 0.2" in result.output
    assert (tmp_path / "any.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"runs": []}'])
def test_file_that_holds_no_results_is_refused_and_kept(cli, counted, tmp_path, content):
    (tmp_path / "any.json").write_text(content)
    result = cli("any")
    assert result.exit_code == 1
    assert "does not hold an experiment's results" in result.output
    assert (tmp_path / "any.json").read_text() == content


def test_figures_need_no_display_and_come_out_the_same_twice(cli, counted, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    assert matplotlib.get_backend().lower() == "agg"
    figures = [tmp_path / "any.png", tmp_path / "any.svg"]
    cli("any")
    first = [file.read_bytes() for file in figures]
    cli("any")
    assert [file.read_bytes() for file in figures] == first


def test_values_that_json_cannot_hold_become_none(tmp_path):
    results = Results(tmp_path / "r.json", "r", "digits", {"seeds": 1}, "command")
    results.add("a", 0, {"loss": [np.float32(1.5), float("nan"), float("inf")]})
    again = Results(tmp_path / "r.json", "r", "digits", {"seeds": 1}, "command")
    np.testing.assert_array_equal(again.values("a", "loss"), [[1.5, np.nan, np.nan]])


@pytest.mark.parametrize("name", registry.EXPERIMENTS)
def test_readme_quotes_the_committed_results(name):
    document = json.loads((RESULTS / f"{name}.json").read_text())
    readme = (RESULTS.parent / "README.md").read_text()
    assert "\n".join(document["summary"]) in readme
    assert document["command"] in readme and f"(results/{name}.png)" in readme
    found = {key: document["settings"][key] for key in document["settings"] if key != "seeds"}
    full = registry.load(name).full
    assert found == {key: full[key] for key in full if key != "seeds"}


def test_shuffled_batches_walk_whole_epochs():
    batches = training.shuffled_batches(examples=10, steps=7, batch_size=4, seed=3)
    assert batches.shape == (7, 4)
    flat = batches.ravel()
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert len(set(flat[20:])) == 8


def test_evaluate_agrees_with_keras(digits):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    found = training.evaluate(model, digits.x_test, digits.y_test)
    logits = model(digits.x_test)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(digits.y_test, logits)
    # Keras sums 500 losses in float32; ours are float64 from the same float32 logits.
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found["accuracy"] == np.mean(np.argmax(logits, axis=1) == digits.y_test)


def test_one_step_of_training_is_one_step_of_sgd(digits):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    kernel, bias = (weight.copy() for weight in model.get_weights())
    batch = training.shuffled_batches(len(digits.x_train), 1, 16, seed=5)[0]
    x, y = digits.x_train[batch].reshape(16, -1).astype("float64"), np.eye(10)[digits.y_train[batch]]
    probabilities = np.exp(x @ kernel + bias)
    error = probabilities / probabilities.sum(axis=1, keepdims=True) - y
    training.train(
        model, digits, optimizer=keras.optimizers.SGD(0.5), steps=1, batch_size=16, every=1, seed=5
    )
    # float32 sums of 64 products against float64: a few ulp of the largest weight, below 1.
    np.testing.assert_allclose(model.get_weights()[0], kernel - 0.5 * x.T @ error / 16, atol=1e-6)
    np.testing.assert_allclose(model.get_weights()[1], bias - 0.5 * error.mean(axis=0), atol=1e-6)


def test_steps_to_an_accuracy():
    history = {"step": [0, 5, 10], "accuracy": [0.1, 0.7, 0.9]}
    assert [training.steps_to(history, accuracy) for accuracy in (0.7, 0.8, 0.95)] == [5, 10, None]
    assert tables.steps([5, 10]) == "8" and tables.steps([5, None]) == "5 (1 of 2)"
    assert tables.steps([None]) == "never"


@pytest.mark.slow
def test_fast_retrofit_changes_no_output_where_the_others_do(cli, tmp_path):
    result = cli("vgg_retrofit", "--fast")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "vgg_retrofit.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "vgg_retrofit.svg").read_text().startswith("<?xml")
    document = json.loads((tmp_path / "vgg_retrofit.json").read_text())
    change = {run["variant"]: run["result"]["after"]["difference"] for run in document["runs"]}
    # The identity itself is exact; splitting an activation from its layer may change the kernel TensorFlow
    # takes, hence rounding of logits of size 10.
    assert change["retrofitted"] < 1e-4
    assert change["naive"] > 0.1 and change["fast.ai way"] > 0.1


def test_fast_sequences_ignore_padding_only_with_the_mask(cli, tmp_path):
    result = cli("sequences", "--fast")
    assert result.exit_code == 0, result.output
    runs = json.loads((tmp_path / "sequences.json").read_text())["runs"]
    for run in runs:
        change = run["result"]["change_by_padding"]
        # Logits of size 10, moments summed over differently shaped float32 arrays.
        assert change < 1e-3 if run["variant"].endswith("with mask") else change > 0.1
