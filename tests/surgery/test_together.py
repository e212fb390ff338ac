"""Layers inside a step that can be neither inlined nor cut are found in a single run on all of the data."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn

L = keras.layers


class Closed(L.Layer):
    """Several BN layers; its call computes with the sizes of its inputs, so no symbolic tensor passes."""

    def __init__(self, depth, name):
        super().__init__(name=name)
        self.dense = [L.Dense(4) for _ in range(depth)]
        self.norms = [L.BatchNormalization(axis=-1) for _ in range(depth)]
        self.runs = 0

    def build(self, shape):
        for dense, norm in zip(self.dense, self.norms, strict=True):
            dense.build((*shape[:-1], 4))
            norm.build((*shape[:-1], 4))

    def call(self, x):
        self.runs += 1
        return ops.reshape(self.outputs(x, []), (x.shape[0] * 1, x.shape[1] * 1, 4))

    def outputs(self, x, seen):
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = dense(x)
            seen.append((norm, ops.convert_to_numpy(x)))
            x = ops.relu(norm(x, training=False))
        return x

    def compute_output_shape(self, shape):
        return shape


def network(depth=3):
    """A level before, two closed layers side by side with another after one of them, and a level behind."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 4))
    x = L.BatchNormalization(name="first")(inputs)
    y = Closed(depth, "two")(Closed(depth, "one")(x))
    return keras.Model(inputs, L.BatchNormalization(name="last")(L.Add()([y, Closed(depth, "three")(x)])))


def moments(model, batches):
    """The float64 moments of the inputs of each BN layer at inference, by hand."""
    first, one, two, three, last = map(model.get_layer, ("first", "one", "two", "three", "last"))
    seen = []
    for batch in batches:
        seen.append((first, batch))
        x = first(batch, training=False)
        y = two.outputs(one.outputs(x, seen), seen) + three.outputs(x, seen)
        seen.append((last, ops.convert_to_numpy(y)))
    values = {norm: [x.reshape(-1, 4) for other, x in seen if other is norm] for norm, _ in seen}
    joined = {norm: np.concatenate(parts).astype("float64") for norm, parts in values.items()}
    return {norm: (x.mean(0), x.var(0)) for norm, x in joined.items()}


def assert_exact(model, batches):
    expected = moments(model, batches)
    assert len(expected) == 11
    for norm, (mean, variance) in expected.items():
        np.testing.assert_allclose(ops.convert_to_numpy(norm.moving_mean), mean, atol=1e-5)
        np.testing.assert_allclose(ops.convert_to_numpy(norm.moving_variance), variance, rtol=1e-4)


DATA = np.random.default_rng(0).normal(1, 2, (22, 5, 4)).astype("float32")


@pytest.mark.parametrize("limit", [2**30, 0], ids=["together", "one after the other"])
def test_the_statistics_are_those_of_the_network_at_inference(limit):
    result = keras_bn.recalibrate(network(), DATA, batch_size=8, memory_limit=limit, progress=False)
    assert_exact(result.model, [DATA])


def test_batches_that_do_not_go_together():
    batches = [DATA[:8], DATA[8:16, :3], DATA[16:, :4]]
    result = keras_bn.recalibrate(network(), (batch for batch in batches), progress=False)
    assert_exact(result.model, batches)


def _runs(depth, limit):
    model = network(depth)
    blocks = [layer for layer in model.layers if isinstance(layer, Closed)]
    keras_bn.recalibrate(model, DATA, in_place=True, batch_size=8, memory_limit=limit, progress=False)
    return sum(block.runs for block in blocks)


def test_each_step_runs_as_often_whatever_the_number_of_layers_in_it():
    assert _runs(2, 2**30) == _runs(6, 2**30)
    assert _runs(2, 0) < _runs(6, 0)


def test_some_of_the_layers_only():
    model = network()
    result = keras_bn.recalibrate(model, DATA, layers=["one/*", "last"], progress=False)
    changed = [row.layer for row in result.report.rows if row.action == "recalibrated"]
    assert len(changed) == 4
    same = keras_bn.recalibrate(
        model, DATA, layers=["one/*", "last"], batch_size=3, memory_limit=0, progress=False
    )
    for one, other in zip(result.model.variables, same.model.variables, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other), rtol=1e-5, atol=1e-6
        )
