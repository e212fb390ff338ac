"""16-bit arithmetic and fused operations in graphs with loops and with other products than convolutions."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn.saving.record import read_record
from keras_bn.saving.session import servable


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def masked(x):
    return layers.LSTM(4)(layers.Masking(0.0)(x))


MODELS = {
    "LSTM": ((7, 3), layers.LSTM(4)),
    "GRU both ways": ((7, 3), layers.Bidirectional(layers.GRU(4))),
    "masked": ((7, 3), masked),
    "ConvLSTM": ((3, 6, 6, 2), layers.ConvLSTM2D(4, 3)),
    "transposed": ((6, 6, 2), layers.Conv2DTranspose(4, 3, strides=2)),
    "transposed, one axis": ((6, 2), layers.Conv1DTranspose(4, 3, strides=2)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_outputs_are_those_of_the_model(tmp_path, name, precision, fused):
    shape, body = MODELS[name]
    inputs = keras.Input(shape, name="x")
    model = keras.Model({"x": inputs}, {"y": body(inputs)})
    values = normal(5, *shape)
    values[:2, -2:] = 0  # masked
    path = keras_bn.export(model, tmp_path, examples=values, precision=precision, fused=fused)
    expected = np.asarray(model({"x": values})["y"])
    tolerance = {"float32": 1e-6, "bfloat16": 0.03}[precision] * np.abs(expected).max()
    with servable(path, "serving_default") as served:
        np.testing.assert_allclose(served.run({"x": values})["y"], expected, rtol=0, atol=tolerance)
    changed = read_record(path)["difference"]
    assert changed > 1e-5 if precision == "bfloat16" else changed < 1e-6
