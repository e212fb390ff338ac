"""Layers that are called several times, with BN layers that are called as often."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn

L = keras.layers


class Block(L.Layer):
    def __init__(self, filters):
        super().__init__()
        self.conv, self.bn = L.Conv2D(filters, 3, padding="same"), L.BatchNormalization()

    def call(self, x):
        return ops.relu(self.bn(self.conv(x)))


def plain(filters):
    conv, bn = L.Conv2D(filters, 3, padding="same"), L.BatchNormalization()
    return lambda x: ops.relu(bn(conv(x)))


def scrambled(model):
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.get_weights()])
    return model


def siamese(block):
    """Two images of different sizes through the same layers."""
    inputs = keras.Input((8, 8, 3)), keras.Input((5, 5, 3))
    tower, pool = [block(4), block(6)], L.GlobalMaxPooling2D()
    outputs = []
    for x in inputs:
        for each in tower:
            x = each(x)
        outputs.append(pool(x))
    return scrambled(keras.Model(inputs, L.Subtract()(outputs)))


@pytest.mark.parametrize("block", [plain, Block])
def test_a_layer_takes_up_the_bn_layer_behind_all_of_its_calls(block):
    model = siamese(block)
    x = [np.random.default_rng(1).normal(size=(4, size, size, 3)).astype("float32") for size in (8, 5)]
    result = keras_bn.fold(model)
    assert [row.action for row in result.report.rows] == ["folded"] * 4
    assert not any("Normalization" in type(each).__name__ for each in result.model._flatten_layers())
    assert len(result.model.weights) == 4  # still shared
    np.testing.assert_allclose(
        ops.convert_to_numpy(result.model(x)), ops.convert_to_numpy(model(x, training=False)), atol=1e-5
    )


def another_bn(x, y):
    conv, first, second = L.Dense(4), L.BatchNormalization(), L.BatchNormalization()
    return [first(conv(x)), second(conv(y))]


def one_call_without(x, y):
    conv, bn = L.Dense(4), L.BatchNormalization()
    return [bn(conv(x)), conv(y)]


def another_layer(x, y):
    first, second, bn = L.Dense(4), L.Dense(4), L.BatchNormalization()
    return [ops.relu(bn(first(x))), ops.relu(bn(second(first(y))))]


def seen_by_another(x, y):
    conv, bn = L.Dense(4), L.BatchNormalization()
    z = conv(x)
    return [bn(z) + ops.tanh(z), bn(conv(y))]


@pytest.mark.parametrize("branches", [another_bn, one_call_without, another_layer, seen_by_another])
def test_otherwise_it_stays_as_it_is(branches):
    inputs = keras.Input((4,)), keras.Input((4,))
    outputs = [L.Dense(2)(ops.tanh(each)) for each in branches(*inputs)]
    model = scrambled(keras.Model(inputs, outputs))
    x = [np.random.default_rng(seed).normal(size=(6, 4)).astype("float32") for seed in (0, 1)]
    for one, other in zip(keras_bn.fold(model).model(x), model(x, training=False), strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), atol=1e-5)
