"""Batch renormalization against Keras's own, and the law it is made for."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_bn import BatchNormalization, BatchRenormalization, KerasBNError, reference

EPSILON = 1e-3


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype("float32")


def _built(shape, **arguments):
    layer = BatchRenormalization(epsilon=EPSILON, momentum=0.9, **arguments)
    layer.build(shape)
    rng = np.random.default_rng(1)
    layer.set_weights([*rng.uniform(0.5, 2.0, (4, shape[-1])).astype("float32"), np.int32(0)])
    return layer


@pytest.mark.parametrize(("r_max", "d_max"), [(1.0, 0.0), (1.3, 0.4), (3.0, 5.0)])
@pytest.mark.parametrize("shape", [(8, 3), (4, 5, 5, 3)])
def test_agrees_with_keras(r_max, d_max, shape, training_step):
    clipping = {"rmax": r_max, "rmin": 1 / r_max, "dmax": d_max}
    try:
        theirs = layers.BatchNormalization(
            momentum=0.9, epsilon=EPSILON, renorm=True, renorm_clipping=clipping, renorm_momentum=0.9
        )
    except (TypeError, ValueError):
        pytest.skip("this version of Keras has no renorm")
    ours = _built(shape, r_max=r_max, d_max=d_max)
    theirs.build(shape)
    gamma, beta, mean, variance, _ = ours.get_weights()
    deviation = np.sqrt(variance + EPSILON)
    theirs.set_weights([gamma, beta, mean, variance, deviation, mean, deviation])
    for seed in range(3):
        x, dy = _normal(*shape, seed=seed), _normal(*shape, seed=10 + seed)
        found, expected = (training_step(layer, x, dy) for layer in (ours, theirs))
        # Both in float32, rounding values of x / deviation near 10 in different orders.
        np.testing.assert_allclose(found.y, expected.y, atol=2e-5)
        np.testing.assert_allclose(found.dx, expected.dx, atol=1e-4)
        for one, other in zip(found.dweights, expected.dweights, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)
        for one, other in zip(ours.get_weights()[2:4], theirs.get_weights()[2:4], strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6)


def test_training_is_inference_while_nothing_is_clipped():
    x = _normal(6, 3)
    layer = _built(x.shape, r_max=1e6, d_max=1e6)
    inference = ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x, training=True)), inference, atol=1e-5)


def test_it_starts_as_plain_batch_normalization():
    x = _normal(6, 3)
    layer = _built(x.shape)  # the paper's schedules
    gamma, beta = layer.get_weights()[:2]
    y, _ = reference.train_forward(x, gamma, beta, EPSILON)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x, training=True)), y, atol=1e-5)


def test_schedules_follow_the_batches():
    x = 3 * _normal(6, 1)
    layer = BatchRenormalization(r_max=[(0, 1.0), (2, 3.0)], d_max=[(0, 0.0), (2, 100.0)], momentum=0.999)
    deviation = x.std()
    first, second, third = (ops.convert_to_numpy(layer(x, training=True)) for _ in range(3))
    # The population's deviation stays near 1, so r is r_max: 1, 2, 3. d is 0, then the mean, within 50.
    assert deviation > 3
    np.testing.assert_allclose(first.std(), 1, rtol=1e-2)
    np.testing.assert_allclose(second.std(), 2, rtol=1e-2)
    np.testing.assert_allclose(third.std(), 3, rtol=2e-2)
    np.testing.assert_allclose(first.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(second.mean(), x.mean(), rtol=5e-2)


@pytest.mark.parametrize("axis", [-1, 1])
def test_masks_and_axes(axis):
    x = _normal(4, 6, 3)
    mask = np.random.default_rng(0).random((4, 6)) < 0.6
    layer, other = (BatchRenormalization(axis=a, r_max=3.0, d_max=5.0, momentum=0.5) for a in (axis, -1))
    y = ops.convert_to_numpy(layer(np.moveaxis(x, -1, axis), training=True, mask=mask))
    z = ops.convert_to_numpy(other(x[mask], training=True))
    np.testing.assert_allclose(np.moveaxis(y, axis, -1)[mask], z, atol=1e-5)
    for found, expected in zip(layer.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_batch_without_values_changes_nothing():
    layer = _built((2, 4, 3), r_max=3.0, d_max=5.0)
    layer.moving_variance.assign([0.3, 1.0, 1e-7])  # the square of a root is not always these
    before = layer.get_weights()
    y = layer(_normal(2, 4, 3), training=True, mask=np.zeros((2, 4), bool))
    assert np.isfinite(ops.convert_to_numpy(y)).all()
    for found, kept in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, kept)


def test_inference_and_weights_are_those_of_the_base_layer():
    x = _normal(4, 3)
    layer, base = _built(x.shape), BatchNormalization(epsilon=EPSILON)
    base.build(x.shape)
    base.set_weights(layer.get_weights()[:4])
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x)), ops.convert_to_numpy(base(x)))


def test_files_round_trip(tmp_path):
    model = keras.Sequential([keras.Input((3,)), BatchRenormalization(r_max=2.0)])
    model(_normal(4, 3), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    for found, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r_max": 0.9}, "r_max must be a finite number of at least 1.0.* 0.9"),
        ({"d_max": -1}, "d_max must be a finite number of at least 0.0.* -1"),
        ({"r_max": [(0, 1.0), (0, 2.0)]}, "increasing steps"),
        ({"r_max": [(0, 1.0), (5, 0.5)]}, "r_max"),
        ({"r_max": []}, "r_max"),
        ({"d_max": "5"}, "d_max"),
        ({"d_max": float("nan")}, "d_max"),
    ],
)
def test_bounds_out_of_range_are_refused(arguments, message):
    with pytest.raises(KerasBNError, match=message):
        BatchRenormalization(**arguments)
