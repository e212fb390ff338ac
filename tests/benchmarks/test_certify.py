"""The certificate: a few models of each kind are handled as its page says, and its oracle sees mistakes."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from benchmarks.certify import check, oracle, page
from benchmarks.certify.__main__ import QUICK, RESULTS, certify, models

HELD = json.loads(RESULTS.read_text())
MODELS = dict(models())


@pytest.mark.parametrize("name", QUICK)
def test_a_model_is_handled_as_the_certificate_says(name):
    if name.startswith("KerasHub"):
        pytest.importorskip("keras_hub")
    held, found = HELD[name], certify(MODELS[name])
    assert (found["layers"], found["called"]) == (held["layers"], held["called"])
    for function, outcome in found["functions"].items():
        before = held["functions"][function]
        assert outcome["faults"] == [], function
        assert outcome["done"] >= before["done"], (function, outcome)
        assert outcome["affine"] <= before["affine"], (function, outcome)


def test_every_family_of_keras_hub_is_handled():
    """At least 95% of the layers that are called are converted, recalibrated, and folded or multiply-adds."""
    own = {name: found for name, found in HELD.items() if name.startswith("KerasHub/")}
    assert len(own) >= 18
    for name, found in own.items():
        for function in ("convert", "recalibrate", "fold"):
            assert found["functions"][function]["done"] >= 0.95 * found["called"], (name, function)


def test_the_page_is_that_of_the_results(tmp_path, monkeypatch):
    written = page.PAGE.read_text()
    monkeypatch.setattr(page, "PAGE", tmp_path / "certificate.md")
    page.write(HELD, MODELS)
    assert page.PAGE.read_text() == written


@pytest.fixture
def subject():
    keras.utils.set_random_seed(0)
    stack = [keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(name="first"), layers.ReLU()]
    stack += [layers.Dense(4), layers.BatchNormalization(name="second")]
    data = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    return check.Subject(keras.Sequential(stack), data)


def test_the_oracle_knows_the_moments_of_every_layer(subject):
    dense, bn = subject.model.layers[:2]
    values = np.asarray(dense(subject.inputs)).astype("float64")
    count, mean, variance = subject.moments[id(bn)]
    assert count == 32
    np.testing.assert_allclose(mean, values.mean(0), atol=1e-6)
    np.testing.assert_allclose(variance, values.var(0), rtol=1e-5)


def _recalibrated_wrongly(model):
    """By the moments of the inputs before the first layer is changed."""
    result = keras.models.clone_model(model)
    result.set_weights(model.get_weights())
    for layer, (_, mean, variance) in zip(
        oracle.normalizations(result),
        oracle.moments(model, _recalibrated_wrongly.inputs, 32).values(),
        strict=True,
    ):
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
    return result


def test_the_oracle_sees_statistics_that_are_not_those_of_the_result(subject):
    _recalibrated_wrongly.inputs = subject.inputs
    done, faults = subject.statistics_of(_recalibrated_wrongly(subject.model))
    assert done == 1
    assert len(faults) == 1
    assert "second" in faults[0]


def test_a_changed_donor_and_an_exception_are_faults_and_a_refusal_is_none(subject, monkeypatch):
    def changes(subject):
        subject.model.layers[0].bias.assign_add(np.ones(8))
        return check.Outcome(2)

    def fails(subject):
        raise RuntimeError("broken")

    def refuses(subject):
        raise keras_bn.KerasBNError("no")

    for function in (refuses, fails, changes):
        monkeypatch.setitem(check.FUNCTIONS, function.__name__, function)
    assert check.attempt("refuses", subject).refused == "no"
    assert check.attempt("refuses", subject).faults == []
    assert "RuntimeError: broken" in check.attempt("fails", subject).faults[0]
    assert check.attempt("changes", subject).faults == ["the donor changed"]
