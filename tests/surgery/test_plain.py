"""Layers of one's own inlined for observation: the same statistics, each layer run once per batch."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn
import keras_bn.surgery.recalibrate as module
from keras_bn.surgery._plain import plain_graph
from keras_bn.surgery.normalizations import batch_normalizations

L = keras.layers


class Unit(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norms = [L.Dense(4) for _ in range(3)], [L.BatchNormalization() for _ in range(3)]

    def call(self, x):
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = ops.relu(norm(dense(x)))
        return x


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.unit, self.bn = Unit(), L.BatchNormalization()

    def call(self, x):
        return self.bn(self.unit(x))


def functional():
    return keras.Sequential([keras.Input((6,)), Unit(), L.Dense(2), L.BatchNormalization()])


def subclassed():
    net = Net()
    net(np.zeros((2, 6), "float32"))
    return net


@pytest.mark.parametrize("make", [functional, subclassed])
def test_the_statistics_are_the_same(make, monkeypatch):
    model = make()
    x = np.random.default_rng(0).normal(2, 3, (40, 6)).astype("float32")
    layers = [found.layer for found in batch_normalizations(model)]
    plain, twins = plain_graph(model, layers, x)
    assert plain is not model and len(twins) == 4 and not {*twins} & {*layers}
    one = keras_bn.recalibrate(model, x, progress=False).model
    monkeypatch.setattr(module, "plain_graph", lambda model, layers, example: (model, list(layers)))
    other = keras_bn.recalibrate(model, x, progress=False).model
    for a, b in zip(one.variables, other.variables, strict=True):
        a, b = ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_plain_model_is_left_as_it_is():
    model = keras.Sequential([keras.Input((6,)), L.Dense(2), L.BatchNormalization()])
    layers = [found.layer for found in batch_normalizations(model)]
    assert plain_graph(model, layers, np.zeros((2, 6), "float32")) == (model, layers)
