"""What an export may differ by: rounding, also where the network amplifies it, and nothing else."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn.errors import CheckFailedError
from keras_bn.saving import write_version as module

DATA = np.random.default_rng(0).normal(size=(80, 6)).astype("float32")


def amplifying(offset):
    """BN removes an offset that took the last digits of what is left."""
    keras.utils.set_random_seed(0)
    bias = keras.initializers.Constant(offset)
    stack = [keras.Input((6,)), layers.Dense(64, bias_initializer=bias), layers.BatchNormalization()]
    model = keras.Sequential([*stack, layers.Dense(3)])
    model.layers[1].moving_mean.assign(np.full(64, offset))
    return model


def test_a_network_that_amplifies_rounding_is_exported(tmp_path):
    model = amplifying(1e4)
    with pytest.raises(CheckFailedError, match="tolerance=1e-05"):
        keras_bn.export(model, tmp_path, examples=DATA, tolerance=1e-5)
    path = keras_bn.export(model, tmp_path, examples=DATA)
    assert path.exists()


def test_the_advice_where_a_network_amplifies_rounding_beyond_measure(tmp_path):
    """Folding is exact here, but the model itself loses 6 of 7 digits."""
    model = amplifying(1e6)
    with pytest.raises(CheckFailedError, match="moving its weights in their last bit changes") as refused:
        keras_bn.export(model, tmp_path, examples=DATA)
    tolerance = float(re.search(r"tolerance=([\d.e-]+)\.$", str(refused.value))[1])
    assert keras_bn.export(model, tmp_path, examples=DATA, tolerance=tolerance).exists()
    recalibrated = keras_bn.recalibrate(amplifying(1.0), DATA, progress=False).model
    assert keras_bn.export(recalibrated, tmp_path, examples=DATA).exists()


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_other_outputs_are_refused_all_the_same(tmp_path, monkeypatch, offset):
    model = amplifying(offset)

    def wrong(model):
        result = keras_bn.fold(model).model
        kernel = result.layers[0].kernel
        kernel.assign(kernel * (1 + 5e-2))
        return result, {}

    monkeypatch.setattr(module, "_folded", wrong)
    with pytest.raises(CheckFailedError, match="differ by"):
        keras_bn.export(model, tmp_path, examples=DATA)


def test_changing_the_last_bits_leaves_the_weights_alone(tmp_path):
    model = amplifying(1e4)
    before = [variable.numpy().tobytes() for variable in model.variables]
    keras_bn.export(model, tmp_path, examples=DATA)
    assert [variable.numpy().tobytes() for variable in model.variables] == before
