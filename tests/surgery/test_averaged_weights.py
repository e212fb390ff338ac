"""Averaged weights: SWA, the optimizer's moving average and merged models get statistics of their own."""

import keras
import numpy as np
import pytest

import keras_bn

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(2, size=512)
X = (RANDOM.normal(size=(512, 8)) + 2 * LABELS[:, None]).astype("float32")


def build(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, use_bias=False, name="dense"),
            keras_bn.BatchNormalization(momentum=0.9, unbiased_variance=False, name="bn"),
            keras.layers.ReLU(),
            keras.layers.Dense(2, activation="softmax", name="out"),
        ]
    )


def train(model, epochs=3, callbacks=(), **options):
    model.compile(keras.optimizers.SGD(0.5, **options), "sparse_categorical_crossentropy")
    model.fit(X, LABELS, epochs=epochs, callbacks=list(callbacks), verbose=0)
    return model.get_weights()


def mean(snapshots):
    model = build()
    model.set_weights([np.mean(weights, axis=0) for weights in zip(*snapshots, strict=True)])
    return model


def stochastic_weight_averaging():
    model = build()
    return mean([train(model, epochs=1) for _ in range(4)])


def moving_average_of_the_optimizer():
    model = build()
    train(model, use_ema=True, ema_momentum=0.95)
    return model


def swapped_in_by_the_callback():
    model = build()
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    train(model, callbacks=[swap], use_ema=True, ema_momentum=0.95)
    return model


def merged_models():
    return mean([train(build(seed)) for seed in (1, 2)])


def weights(model):
    names = ("/".join(weight.path.split("/")[-2:]) for weight in model.weights)
    return dict(zip(names, model.get_weights(), strict=True))


def loss(model):
    probabilities = keras.ops.convert_to_numpy(model(X, training=False)).astype("float64")
    return -np.log(probabilities[np.arange(len(X)), LABELS]).mean()


@pytest.mark.parametrize(
    "averaged",
    [
        stochastic_weight_averaging,
        moving_average_of_the_optimizer,
        swapped_in_by_the_callback,
        merged_models,
    ],
)
def test_the_statistics_become_those_of_the_averaged_network(averaged):
    model = averaged()
    before = weights(model)
    result = keras_bn.recalibrate(model, X, progress=False).model
    inputs = X.astype("float64") @ before["dense/kernel"].astype("float64")
    after = weights(result)
    # The inputs are computed in float32 by the model.
    np.testing.assert_allclose(after["bn/moving_mean"], inputs.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["bn/moving_variance"], inputs.var(0), rtol=1e-5)
    assert not np.allclose(before["bn/moving_variance"], inputs.var(0), rtol=1e-3)
    for path in before.keys() - {"bn/moving_mean", "bn/moving_variance"}:
        np.testing.assert_array_equal(after[path], before[path])
    # Averages of one run differ by less than that in their loss, merged models by much more.
    assert loss(result) < loss(model) + 1e-3
