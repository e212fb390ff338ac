"""Constants of a graph in the forms that its readers take."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn


@pytest.mark.parametrize("activation", ["elu", "gelu", "hard_swish", "leaky_relu", "softmax"])
def test_openvino_reads_what_is_written_in_bfloat16(tmp_path, activation):
    openvino = pytest.importorskip("openvino")
    inputs = keras.Input((6, 6, 3), name="x")
    x = layers.Conv2D(1, 3, bias_initializer="normal")(inputs)  # one value, which has a form of its own
    x = layers.Conv2D(4, 3)(layers.Activation(activation)(layers.Add()([x, x])))
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="y")(x))
    values = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    path = keras_bn.export(model, tmp_path, precision="bfloat16", examples=values)
    compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU")
    expected = np.asarray(model(values))
    # 8 bits, in each of four operations
    np.testing.assert_allclose(
        compiled({"x": values})["y"], expected, rtol=0, atol=0.05 * np.abs(expected).max()
    )
