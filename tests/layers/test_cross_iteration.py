"""Moments of recent iterations, carried over to the present weights."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_bn import BatchNormalization, CrossIterationNormalization, KerasBNError

EPSILON = 1e-3


def _inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.5, 1, shape).astype("float32")


def _layer(window, **arguments):
    dense = layers.Dense(3, use_bias=False)
    return CrossIterationNormalization(
        dense, window, normalization=BatchNormalization(momentum=0.5), **arguments
    )


def _expected(history, window):
    """The paper's equations for dense layers, in float64, from (inputs, weights) of each iteration."""
    *_, (x, w) = history
    means, squares = [], []
    for past, old in history[-window:]:
        past = past.astype("float64")
        out = past @ old
        change = w - old
        means.append(out.mean(0) + past.mean(0) @ change)
        squares.append((out**2).mean(0) + 2 * np.einsum("nk,nj,kj->j", past, out, change) / len(past))
    means, squares = np.array(means), np.array(squares)
    mean = means.mean(0)
    variance = np.maximum(squares, means**2).mean(0) - mean**2
    return (x @ w - mean) / np.sqrt(variance + EPSILON)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_follows_the_papers_equations_while_the_weights_move(window):
    layer = _layer(window)
    rng = np.random.default_rng(5)
    history = []
    layer.build((None, 4))
    for iteration in range(5):
        weights = rng.normal(size=(4, 3)) + 0.1 * iteration
        layer.layer.kernel.assign(weights)
        x = _inputs(6, 4, seed=iteration)
        history.append((x, layer.layer.get_weights()[0].astype("float64")))
        y = ops.convert_to_numpy(layer(x, training=True))
        # Means of squares in float32, of size 10, beside variances near 1.
        np.testing.assert_allclose(y, _expected(history, window), atol=2e-4)


def test_a_window_of_one_is_batch_normalization(training_step):
    x, dy = _inputs(6, 5, 5, 2), _inputs(6, 3, 3, 4, seed=1)
    convolution, plain = layers.Conv2D(4, 3, use_bias=False), BatchNormalization()
    layer = CrossIterationNormalization(convolution, window=1)
    other = keras.Sequential([keras.Input((5, 5, 2)), layers.Conv2D(4, 3, use_bias=False), plain])
    layer.build(x.shape)
    other.layers[0].set_weights(convolution.get_weights())
    found, expected = (training_step(one, x, dy) for one in (layer, other))
    np.testing.assert_allclose(found.y, expected.y, atol=1e-5)
    np.testing.assert_allclose(found.dx, expected.dx, atol=1e-5)
    for one, another in zip(found.dweights, expected.dweights, strict=True):
        np.testing.assert_allclose(one, another, atol=2e-5)  # sums of 54 terms near 1
    for one, another in zip(layer.normalization.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_present_batchs_share(training_step):
    first, x, dy = _inputs(5, 4), _inputs(6, 4, seed=1), _inputs(6, 3, seed=2)
    layer = _layer(2)
    layer(first, training=True)
    weights = layer.layer.get_weights()[0].astype("float64")
    step = training_step(layer, x, dy)

    def loss(x):
        return np.sum(dy * _expected([(first, weights), (x, weights)], 2))

    x = x.astype("float64")
    for index in np.ndindex(x.shape):
        change = np.zeros_like(x)
        change[index] = 1e-5
        slope = (loss(x + change) - loss(x - change)) / 2e-5
        np.testing.assert_allclose(step.dx[index], slope, atol=2e-4)


def test_burn_in_is_plain_batch_normalization():
    late, plain = _layer(3, burn_in=2), _layer(1)
    for layer in (late, plain):
        layer.build((None, 4))
    plain.layer.set_weights(late.layer.get_weights())
    same = []
    for seed in range(3):
        x = _inputs(6, 4, seed=seed)
        found, expected = (ops.convert_to_numpy(layer(x, training=True)) for layer in (late, plain))
        same.append(np.allclose(found, expected, atol=1e-5))
    assert same == [True, True, False]


def test_trains_infers_and_loads(tmp_path):
    x = _inputs(64, 8, 8, 2)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            CrossIterationNormalization(layers.Conv2D(4, 3, use_bias=False), window=3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    model.fit(x, x.mean((1, 2, 3)), batch_size=4, epochs=2, verbose=0)
    block = model.layers[0]
    to_numpy = ops.convert_to_numpy
    expected = block.normalization(block.layer(x), training=False)
    np.testing.assert_array_equal(to_numpy(block(x)), to_numpy(expected))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].window == 3
    assert loaded.layers[0].normalization.get_config() == block.normalization.get_config()
    for training in (False, True):
        found, expected = (to_numpy(one(x, training=training)) for one in (loaded, model))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Dense(3),
        lambda: layers.Dense(3, use_bias=False, activation="relu"),
        lambda: layers.Dense(3, use_bias=False, activity_regularizer="l2"),
        lambda: layers.Conv2D(3, 3, use_bias=False, data_format="channels_first"),
        lambda: layers.DepthwiseConv2D(3, use_bias=False),
        lambda: layers.Flatten(),
    ],
)
def test_layers_it_cannot_wrap_are_refused(layer):
    with pytest.raises(KerasBNError, match="it wraps a Dense or Conv layer with use_bias=False"):
        CrossIterationNormalization(layer())


def test_windows_out_of_range_are_refused():
    with pytest.raises(KerasBNError, match="window must be an integer of at least 1, but it is 0"):
        _layer(0)
    with pytest.raises(KerasBNError, match="burn_in must be an integer of at least 0, but it is -1"):
        _layer(2, burn_in=-1)
