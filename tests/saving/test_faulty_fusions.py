"""What the optimizer fuses wrongly keeps the answers of the model, and the rest of the graph its fusions."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn.saving import saved_model
from tests.saving.exported import ask, normal, optimized


def residual(activation, convolution=layers.Conv2D, batch_size=None):
    inputs = keras.Input((8, 8, 8), name="image", batch_size=batch_size)
    x = convolution(8, 3, padding="same")(inputs)
    x = layers.BatchNormalization(moving_mean_initializer="normal", gamma_initializer="uniform")(x)
    x = activation(layers.Add()([x, inputs]))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("slope", [0.3, 0.01, -0.5, 1.5])
@pytest.mark.parametrize("form", ["constants", "variables", "fused"])
def test_the_slope_behind_a_shortcut_is_kept(tmp_path, monkeypatch, slope, form):
    if form == "variables":
        monkeypatch.setattr(saved_model, "LARGEST_CONSTANTS", 0)
    model, images = residual(lambda x: keras.ops.leaky_relu(x, slope)), normal(5, 8, 8, 8)
    path = keras_bn.export(model, tmp_path, examples=images, fused=form == "fused")
    # The order of summation differs between the kernels; a lost slope changes the scores by a tenth.
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(ask(path, {"image": images})["scores"], expected, rtol=1e-4, atol=1e-5)


def test_the_slope_behind_a_shortcut_is_kept_where_the_batch_size_is_fixed(tmp_path):
    model = residual(lambda x: keras.ops.leaky_relu(x, 0.3), batch_size=2)
    images = normal(2, 8, 8, 8)
    path = keras_bn.export(model, tmp_path, examples=images)
    expected = model.predict(images, verbose=0, batch_size=2)
    np.testing.assert_allclose(ask(path, {"image": images})["scores"], expected, rtol=1e-4, atol=1e-5)


def test_the_slope_behind_a_shortcut_is_kept_in_bfloat16(tmp_path):
    model, images = residual(lambda x: keras.ops.leaky_relu(x, 0.6)), normal(5, 8, 8, 8)
    path = keras_bn.export(model, tmp_path, examples=images, precision="bfloat16")
    expected = model.predict(images, verbose=0)
    # bfloat16 has 8 bits; a lost slope changes the scores by a tenth.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ask(path, {"image": images})["scores"], expected, rtol=0, atol=0.02 * scale)


PRODUCTS = {
    "convolution": ((6, 6, 4), lambda: layers.Conv2D(4, 3, padding="same", bias_initializer="normal")),
    "depthwise": ((6, 6, 4), lambda: layers.DepthwiseConv2D(3, padding="same", bias_initializer="normal")),
    "without bias": ((6, 6, 4), lambda: layers.DepthwiseConv2D(3, padding="same", use_bias=False)),
    "dense": ((4,), lambda: layers.Dense(4, bias_initializer="normal")),
}


@pytest.mark.parametrize("activation", ["mish", "relu", "relu6", "swish", "linear"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_a_shortcut_and_an_activation(tmp_path, product, activation):
    shape, layer = PRODUCTS[product]
    inputs = keras.Input(shape, name="x")
    x = layers.Activation(activation)(layers.Add()([inputs, layer()(inputs)]))
    last = layers.Dense if len(shape) == 1 else layers.Conv1D if len(shape) == 2 else layers.Conv2D
    x = last(3, *[1] * (len(shape) > 1), activation="relu", name="y")(x)
    model, values = keras.Model(inputs, x), normal(5, *shape)
    expected = np.asarray(model(values))  # `predict` fails with Mish, which the optimizer fuses there too
    for options in ({}, {"fused": True}, {"precision": "bfloat16"}, {"precision": "bfloat16", "fused": True}):
        path = keras_bn.export(model, tmp_path, examples=values, **options)
        # float32 in another order of summation, and 8 bits
        tolerance = (1e-6 if "precision" not in options else 0.03) * np.abs(expected).max()
        np.testing.assert_allclose(ask(path, {"x": values})["y"], expected, rtol=0, atol=tolerance)
        if not options:
            operations = optimized(path)
            assert all(operations), "a node without an operation makes the runtime drop all fusions"
            assert "BiasAdd" not in operations and "Add" not in operations
