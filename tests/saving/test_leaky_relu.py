"""LeakyRelu behind a convolution and an addition keeps its slope when TensorFlow optimizes the graph."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_bn
from keras_bn.saving import saved_model

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")


def residual(slope, normalized=True):
    """A residual block whose convolutions have a bias once BN is folded into them."""
    keras.utils.set_random_seed(0)

    def convolution(x):
        x = layers.Conv2D(4, 3, padding="same", bias_initializer="normal")(x)
        return layers.BatchNormalization(beta_initializer="normal")(x) if normalized else x

    inputs = keras.Input((8, 8, 3))
    shortcut = convolution(inputs)
    x = layers.LeakyReLU(slope)(layers.Add()([convolution(shortcut), shortcut]))
    return keras.Model(inputs, layers.Conv2D(2, 1)(x))


@pytest.mark.parametrize("slope", [0.01, 0.2, 1.5])
@pytest.mark.parametrize("constants", [2**27, 0], ids=["constants", "variables"])
def test_the_slope_survives_the_export(tmp_path, monkeypatch, slope, constants):
    monkeypatch.setattr(saved_model, "LARGEST_CONSTANTS", constants)
    model = residual(slope)
    serve = tf.saved_model.load(str(keras_bn.export(model, tmp_path, examples=IMAGES))).signatures
    (answer,) = serve["serving_default"](tf.constant(IMAGES)).values()
    np.testing.assert_allclose(answer, model(IMAGES), atol=1e-5)


@pytest.mark.parametrize("normalized", [False, True], ids=["without BN", "with BN"])
def test_fused_exports_keep_it_too(tmp_path, normalized):
    model = residual(0.01, normalized)
    path = keras_bn.export(model, tmp_path, fused=True, examples=IMAGES)
    (answer,) = tf.saved_model.load(str(path)).signatures["serving_default"](tf.constant(IMAGES)).values()
    np.testing.assert_allclose(answer, model(IMAGES), atol=1e-5)
