"""Mini-batches of one accumulated batch share their moments."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_bn import AccumulatedBatchNormalization, BatchNormalization, KerasBNError, reference


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype("float32")


def _numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("axis", [-1, 1])
def test_mini_batches_are_normalized_by_all_so_far(axis):
    layer = AccumulatedBatchNormalization(3, axis=axis, momentum=0.5)
    shapes = [(4, 5, 3), (2, 5, 3), (6, 5, 3)]
    mean = variance = None
    for accumulated in range(2):
        seen = []
        for step, shape in enumerate(shapes):
            seen.append(_normal(*shape, seed=10 * accumulated + step))
            moments = reference.batch_moments(np.concatenate(seen), axis)
            ones = np.ones(len(moments.mean))
            expected = reference.inference_forward(
                seen[-1], ones, 0 * ones, moments.mean, moments.variance, layer.epsilon, axis
            )
            np.testing.assert_allclose(_numpy(layer(seen[-1], training=True)), expected, atol=1e-5)
            if step < 2 and accumulated == 0:
                np.testing.assert_array_equal(layer.get_weights()[2], np.zeros_like(ones))
        unbiased = moments.variance * moments.count / (moments.count - 1)
        mean = moments.mean / 2 if mean is None else (mean + moments.mean) / 2
        variance = (1 + unbiased) / 2 if variance is None else (variance + unbiased) / 2
        np.testing.assert_allclose(layer.get_weights()[2], mean, rtol=1e-5)
        np.testing.assert_allclose(layer.get_weights()[3], variance, rtol=1e-5)


def test_one_mini_batch_is_the_base_layer(training_step):
    x, dy = _normal(6, 3), _normal(6, 3, seed=1)
    one, base = AccumulatedBatchNormalization(1), BatchNormalization()
    found, expected = (training_step(layer, x, dy) for layer in (one, base))
    np.testing.assert_allclose(found.y, expected.y, atol=1e-6)
    np.testing.assert_allclose(found.dx, expected.dx, atol=1e-5)
    for one_weight, other in zip(one.get_weights()[:4], base.get_weights(), strict=True):
        np.testing.assert_allclose(one_weight, other, rtol=1e-6)


def test_the_gradient_goes_through_the_current_mini_batch_alone(training_step):
    first, x, dy = _normal(4, 1), _normal(5, 1, seed=1), _normal(5, 1, seed=2)
    layer = AccumulatedBatchNormalization(2)
    layer(first, training=True)
    step = training_step(layer, x, dy)

    def loss(x):
        moments = reference.batch_moments(np.concatenate([first, x]))
        return np.sum(dy * (x - moments.mean) / np.sqrt(moments.variance + layer.epsilon))

    x = x.astype("float64")
    for i in range(5):
        change = np.zeros_like(x)
        change[i] = 1e-5
        np.testing.assert_allclose(step.dx[i], (loss(x + change) - loss(x - change)) / 2e-5, atol=1e-4)


def test_a_mini_batch_without_values_changes_nothing_but_the_step():
    layer = AccumulatedBatchNormalization(2, momentum=0.0)
    x = _normal(3, 4, 2)
    layer(x, training=True, mask=np.ones((3, 4), bool))
    assert np.isfinite(_numpy(layer(x, training=True, mask=np.zeros((3, 4), bool)))).all()
    np.testing.assert_allclose(layer.get_weights()[2], x.mean((0, 1)), rtol=1e-5)


def test_follows_an_optimizer_that_accumulates_gradients(tmp_path):
    x = _normal(24, 3)
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4), AccumulatedBatchNormalization(3, momentum=0.0)]
    )
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=3), "mse")
    weights = model.layers[0].get_weights()
    before = np.concatenate([x[:12] @ weights[0] + weights[1]])
    model.fit(x[:12], np.zeros((12, 4)), batch_size=4, shuffle=False, verbose=0)
    # All three mini-batches saw the same weights, and the statistics are those of all 12 examples.
    np.testing.assert_allclose(model.layers[1].get_weights()[2], before.mean(0), rtol=1e-4, atol=1e-5)
    assert not np.allclose(model.layers[0].get_weights()[0], weights[0])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].get_config() == model.layers[1].get_config()
    np.testing.assert_array_equal(_numpy(loaded(x)), _numpy(model(x)))


def test_arguments_out_of_range_are_refused():
    with pytest.raises(
        KerasBNError, match="accumulation_steps must be an integer of at least 1, but it is 0"
    ):
        AccumulatedBatchNormalization(0)
    with pytest.raises(KerasBNError, match="momentum None"):
        AccumulatedBatchNormalization(2, momentum=None)
