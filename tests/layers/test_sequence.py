"""Every time step is normalized as a batch of its own."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_bn import KerasBNError, SequenceBatchNormalization, reference


def _normal(*shape, seed=0):
    # The mean grows with the step: statistics shared by all steps would be wrong for each.
    return np.random.default_rng(seed).normal(np.arange(shape[1])[:, None], 1, shape).astype("float32")


@pytest.mark.parametrize("steps", [3, 5, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_steps_are_normalized_alone(steps, masked, training_step):
    x, dy = _normal(6, steps, 2), _normal(6, steps, 2, seed=1)
    mask = np.arange(steps) < np.arange(1, 7)[:, None] if masked else None  # lengths 1 to 6
    layer = SequenceBatchNormalization(max_steps=5, momentum=0.0, epsilon=1e-2)
    step = training_step(layer, x, dy, mask)
    mean, variance = layer.get_weights()[2:]
    for t in range(steps):
        kept = None if mask is None else mask[:, t, None]
        y, moments = reference.train_forward(x[:, t], np.ones(2), np.zeros(2), 1e-2, mask=kept)
        dx = reference.train_gradients(dy[:, t], x[:, t], np.ones(2), 1e-2, mask=kept).x
        # Up to 8 steps from 0 and a deviation of 0.1 where one sequence is left: rounding of 1e-7 * 80.
        np.testing.assert_allclose(step.y[:, t], y, atol=2e-5, rtol=1e-5)
        np.testing.assert_allclose(step.dx[:, t], dx, atol=2e-4)
        if t < 5 and moments.count[0] > 0:
            np.testing.assert_allclose(mean[t], moments.mean, rtol=1e-5, atol=1e-6)
            unbiased = moments.variance * moments.count / np.maximum(moments.count - 1, 1)
            np.testing.assert_allclose(variance[t], unbiased, rtol=1e-4)
    np.testing.assert_array_equal(mean[steps:], 0)
    np.testing.assert_array_equal(variance[steps:], 1)


def test_inference_repeats_the_last_row():
    layer = SequenceBatchNormalization(max_steps=3)
    layer.build((None, None, 2))
    rng = np.random.default_rng(0)
    gamma, beta = rng.normal(size=(2, 2))
    mean, variance = rng.uniform(0.5, 2, (2, 3, 2))
    layer.set_weights([gamma, beta, mean, variance])
    x = _normal(4, 5, 2)
    y = ops.convert_to_numpy(layer(x))
    for t in range(5):
        row = min(t, 2)
        expected = reference.inference_forward(x[:, t], gamma, beta, mean[row], variance[row], layer.epsilon)
        np.testing.assert_allclose(y[:, t], expected, atol=1e-5)


@pytest.mark.parametrize("per_step", [True, False])
def test_an_lstm_trains_on_sequences_of_different_lengths(per_step):
    # Which of two tokens comes first? Lengths 3 to 8, padded with 0.
    from keras_bn import BatchNormalization

    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 6, (256, 8))
    labels = rng.integers(0, 2, 256)
    tokens[:, 0] = 6 + labels
    tokens[np.arange(8) >= rng.integers(3, 9, (256, 1))] = 0
    normalization = (
        SequenceBatchNormalization(8, momentum=0.8) if per_step else BatchNormalization(momentum=0.8)
    )
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(8, 8, mask_zero=True),
            normalization,
            layers.LSTM(8),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.03), "binary_crossentropy", metrics=["accuracy"])
    model.fit(tokens, labels, epochs=8, batch_size=64, verbose=0)
    assert model.evaluate(tokens, labels, verbose=0)[1] > 0.95


def test_files_round_trip(tmp_path):
    model = keras.Sequential([keras.Input((None, 2)), SequenceBatchNormalization(4, momentum=None)])
    model(_normal(4, 3, 2), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    for found, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(KerasBNError, match="max_steps must be an integer of at least 1, but it is 0"):
        SequenceBatchNormalization(0)
    with pytest.raises(KerasBNError, match="the inputs must be"):
        SequenceBatchNormalization(3).build((4, 2))
    with pytest.raises(KerasBNError, match="the inputs must be"):
        SequenceBatchNormalization(3, axis=1).build((4, 5, 2))
    with pytest.raises(KerasBNError, match="one value per channel"):
        SequenceBatchNormalization(3)(_normal(1, 4, 2), training=True)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="refused by the base layer elsewhere")
def test_synchronized_is_refused():
    with pytest.raises(KerasBNError, match="cannot be synchronized"):
        SequenceBatchNormalization(3, synchronized=True)


def test_the_cumulative_average_counts_what_each_step_has_seen():
    layer = SequenceBatchNormalization(3, momentum=None)
    layer(np.zeros((4, 1, 2), "float32"), training=True)
    layer(np.full((4, 2, 2), 10, "float32"), training=True)
    mean, _, seen = layer.get_weights()[2:]
    np.testing.assert_allclose(mean, [[5, 5], [10, 10], [0, 0]])
    np.testing.assert_array_equal(seen, [[2, 2], [1, 1], [0, 0]])
