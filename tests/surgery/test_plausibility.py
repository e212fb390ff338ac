"""Doubts about the data that statistics are to come from: neither missing nor raised on ordinary data."""

import numpy as np
import pytest
from keras import layers

from keras_bn.statistics.population import PopulationMoments
from keras_bn.surgery._plausibility import doubts, snapshot

DATA = {
    "dense": lambda rng: rng.normal(3, 2, (500, 8)),
    "small, far below epsilon": lambda rng: rng.normal(0, 1e-3, (500, 8)),
    "bytes divided by 255": lambda rng: rng.integers(0, 256, (500, 8)) / 255,
    "one of many classes": lambda rng: np.eye(200)[rng.integers(0, 200, 500)],
    "rare classes": lambda rng: np.eye(200)[np.minimum(rng.zipf(1.3, 500), 200) - 1],
    "mostly zero": lambda rng: np.maximum(rng.normal(-2, 1, (500, 50)), 0),
    "mostly constant": lambda rng: np.concatenate([np.full((500, 6), 7.1), rng.normal(size=(500, 2))], 1),
    "one direction": lambda rng: rng.normal(size=(500, 1)) + 1e-4 * rng.normal(size=(500, 8)),
}


def moments_of(values):
    moments = PopulationMoments(values.shape[1])
    moments.update(values.astype("float32"))
    return moments


@pytest.fixture(params=DATA, ids=lambda name: name.replace(" ", "_"))
def trained(request):
    """A function that makes data, and a layer with the statistics of such data."""
    make = DATA[request.param]
    values = make(np.random.default_rng(0))
    layer = layers.BatchNormalization(name="bn")
    layer.build(values.shape)
    layer.moving_mean.assign(values.mean(0))
    layer.moving_variance.assign(values.var(0))
    return make, layer


def scale_doubts(layer, values):
    found = {layer: moments_of(values)}
    return [doubt for doubt in doubts(found, snapshot([layer]), len(values)) if "scaled" in doubt]


def test_more_of_the_same_data_raises_no_doubt(trained):
    make, layer = trained
    assert scale_doubts(layer, make(np.random.default_rng(1))) == []


@pytest.mark.parametrize("factor", [255, 1 / 255])
def test_another_scale_is_said(trained, factor):
    make, layer = trained
    doubt = scale_doubts(layer, factor * make(np.random.default_rng(1)))
    assert len(doubt) == 1 and "'bn', the first layer" in doubt[0]


def test_statistics_that_were_never_set_have_no_scale():
    layer = layers.BatchNormalization()
    layer.build((None, 4))
    assert scale_doubts(layer, np.random.default_rng(0).normal(0, 255, (100, 4))) == []


def test_constant_data_has_no_scale(trained):
    make, layer = trained
    values = np.broadcast_to(make(np.random.default_rng(1))[:1], (50, layer.moving_mean.shape[0]))
    assert scale_doubts(layer, values) == []


def test_too_few_examples():
    layer = layers.BatchNormalization(name="bn")
    layer.build((None, 64))
    values = np.random.default_rng(0).normal(size=(10, 64))
    (doubt,) = doubts({layer: moments_of(values)}, snapshot([layer]), 10)
    assert "'bn' got fewer values per channel" in doubt
    (doubt,) = doubts({layer: moments_of(values[:1])}, snapshot([layer]), 1)
    assert "single example" in doubt
