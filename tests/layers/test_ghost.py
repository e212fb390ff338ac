"""Ghost batches are batches of their own, in training only."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bn import BatchNormalization, GhostBatchNormalization, KerasBNError, reference


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype("float32")


def _numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("size", [1, 6, 8, 9, 11])
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_every_ghost_is_normalized_alone(size, axis, masked, training_step):
    x, dy = _normal(size, 5, 3), _normal(size, 5, 3, seed=1)
    mask = np.random.default_rng(2).random(x.shape) < 0.7 if masked else None
    channels = x.shape[axis]
    gamma, beta = np.random.default_rng(3).normal(size=(2, channels)).astype("float32")
    layer = GhostBatchNormalization(4, axis=axis, momentum=0.0)
    layer.build(x.shape)
    layer.set_weights([gamma, beta, np.zeros(channels), np.ones(channels)])
    step = training_step(layer, x, dy, mask)
    for start in range(0, size, 4):
        part = slice(start, start + 4)
        kept = None if mask is None else mask[part]
        y, _ = reference.train_forward(x[part], gamma, beta, layer.epsilon, axis, kept)
        dx = reference.train_gradients(dy[part], x[part], gamma, layer.epsilon, axis, kept).x
        # Groups of a few values can have tiny deviations, which magnify rounding.
        np.testing.assert_allclose(step.y[part], y, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(step.dx[part], dx, rtol=1e-3, atol=2e-3)
    moments = reference.batch_moments(x, axis, mask)
    np.testing.assert_allclose(layer.get_weights()[2], moments.mean, rtol=1e-5)
    unbiased = moments.variance * moments.count / (moments.count - 1)
    np.testing.assert_allclose(layer.get_weights()[3], unbiased, rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="dynamic shapes are TensorFlow's")
def test_batches_of_any_size_in_one_graph():
    import tensorflow as tf

    layer = GhostBatchNormalization(4)
    layer.build((None, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def train(x):
        return layer(x, training=True)

    for size in (0, 3, 4, 10):
        x = _normal(size, 3)
        y = train(x).numpy()
        assert y.shape == x.shape
        for start in range(0, size, 4):
            part = slice(start, start + 4)
            expected, _ = reference.train_forward(x[part], np.ones(3), np.zeros(3), layer.epsilon)
            np.testing.assert_allclose(y[part], expected, atol=1e-4)


def test_a_ghost_as_large_as_the_batch_is_the_base_layer():
    x = _normal(6, 4, 3)
    ghost, base = GhostBatchNormalization(8), BatchNormalization()
    np.testing.assert_allclose(_numpy(ghost(x, training=True)), _numpy(base(x, training=True)), atol=1e-5)
    for found, expected in zip(ghost.get_weights(), base.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_inference_takes_any_batch_and_cuts_nothing(size):
    # keras#15790: a batch of one could not be served.
    x = _normal(8, 3)
    layer, base = GhostBatchNormalization(4), BatchNormalization()
    layer(x, training=True)
    base.build(x.shape)
    base.set_weights(layer.get_weights())
    np.testing.assert_array_equal(_numpy(layer(x[:size])), _numpy(base(x[:size])))


def test_files_round_trip(tmp_path):
    # keras#16713: models with virtual batches did not load.
    model = keras.Sequential([keras.Input((3,)), GhostBatchNormalization(4)])
    model(_normal(8, 3), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    np.testing.assert_array_equal(_numpy(loaded(_normal(2, 3))), _numpy(model(_normal(2, 3))))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(KerasBNError, match=f"virtual_batch_size must be an integer .* 1, but it is {size}"):
        GhostBatchNormalization(size)


def test_layouts_that_cannot_be_cut_are_refused():
    with pytest.raises(KerasBNError, match="axis 0 is that of the examples"):
        GhostBatchNormalization(4, axis=0).build((8, 3))
    with pytest.raises(KerasBNError, match="one value per channel"):
        GhostBatchNormalization(1)(_normal(8, 3), training=True)
