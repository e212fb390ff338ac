"""With gamma = sqrt(moving_variance + epsilon), beta = moving_mean, inference is the identity to the bit."""

import keras
import numpy as np
import pytest

from keras_bn import BatchNormalization

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="about TensorFlow's graphs")

CHANNELS = 20_000  # with rsqrt in place of a square root and a division, thousands of these are off


@pytest.fixture(scope="module", params=["float32", "float64", "mixed_bfloat16"])
def model(request):
    rng = np.random.default_rng(0)
    inputs = keras.Input((CHANNELS,), dtype="float64" if request.param == "float64" else "float32")
    model = keras.Sequential([inputs, BatchNormalization(dtype=request.param)])
    layer = model.layers[0]
    variance = np.exp(rng.uniform(-20, 20, CHANNELS)).astype(layer.statistics_dtype)
    mean = rng.normal(0, 100, CHANNELS).astype(layer.statistics_dtype)
    gamma = np.sqrt(variance + np.asarray(layer.epsilon, variance.dtype))
    layer.set_weights([gamma, mean, mean, variance])
    return model


@pytest.fixture(scope="module")
def x(model):
    values = np.random.default_rng(1).normal(0, 1e3, (3, CHANNELS))
    return tf.cast(values, model.layers[0].compute_dtype)


def _assert_same_bits(y, x):
    np.testing.assert_array_equal(tf.cast(y, tf.float64).numpy(), tf.cast(x, tf.float64).numpy())


def test_eagerly(model, x):
    _assert_same_bits(model(x), x)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_in_a_graph(model, x, compiled):
    _assert_same_bits(tf.function(model, jit_compile=compiled)(x), x)


def test_in_an_exported_saved_model(model, x, tmp_path):
    model.export(tmp_path / "saved", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved").signatures["serving_default"]
    (y,) = served(tf.cast(x, model.inputs[0].dtype)).values()
    _assert_same_bits(y, x)


@pytest.mark.parametrize("axis", [1, -1])
def test_in_a_frozen_graph_with_convolutions(axis):
    # Constant folding gets to see the weights here.
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    rng = np.random.default_rng(0)
    layer = BatchNormalization(axis)
    shape = [2, 4, 4, 4]
    shape[axis] = 512
    layer.build(tuple(shape))
    mean, variance = rng.normal(size=512), rng.uniform(0.01, 9, 512).astype("float32")
    layer.set_weights([np.sqrt(variance + np.float32(layer.epsilon)), mean, mean, variance])
    function = tf.function(layer.call_inference).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    x = tf.constant(rng.normal(size=shape), tf.float32)
    (y,) = convert_variables_to_constants_v2(function)(x)
    _assert_same_bits(y, x)
