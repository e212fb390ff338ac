"""Results that share nothing with the models they were made from."""

import keras
import numpy as np
import pytest

import keras_bn

L = keras.layers


@pytest.mark.parametrize(
    ("function", "normalization"),
    [
        (lambda model, x: keras_bn.retrofit(model, x, progress=False), L.Identity),
        (lambda model, x: keras_bn.recalibrate(model, x, progress=False), keras_bn.BatchNormalization),
        (lambda model, x: keras_bn.convert(model), L.BatchNormalization),
        (lambda model, x: keras_bn.fold(model), keras_bn.BatchNormalization),
        (lambda model, x: keras_bn.freeze(model), keras_bn.BatchNormalization),
    ],
    ids=["retrofit", "recalibrate", "convert", "fold", "freeze"],
)
def test_training_the_one_leaves_the_other_alone(function, normalization):
    """On JAX a training step gives up the arrays of its variables, whoever else may hold them."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(16, 4, 4, 2)).astype("float32"), random.normal(size=(16, 1)).astype("float32")
    layers = [L.Conv2D(3, 3), normalization(), L.ReLU(), L.Flatten(), L.Dense(1)]
    donor = keras.Sequential([keras.Input((4, 4, 2)), *layers])
    result = function(donor, x).model
    for trained, kept in ((result, donor), (donor, result)):
        before = kept.predict(x, verbose=0)
        trained.compile("sgd", "mse")
        trained.fit(x, y, verbose=0)
        np.testing.assert_array_equal(kept.predict(x, verbose=0), before)
