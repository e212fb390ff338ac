"""The files of a SavedModel: what is in them, how large they are, and that every loader reads them."""

import os
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_bn
from keras_bn.saving import saved_model
from keras_bn.saving.session import servable


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def conv_net():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.BatchNormalization(moving_mean_initializer="normal", gamma_initializer="uniform")(x)
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(layers.ReLU()(x))))


def ask(path, inputs):
    with servable(path, "serving_default") as served:
        return served.run(inputs)


def test_every_loader_reads_it(tmp_path):
    model = conv_net()
    image = normal(3, 8, 8, 3)
    path = keras_bn.export(model, tmp_path)
    expected = model.predict(image, verbose=0)
    loaded = tf.saved_model.load(str(path)).signatures["serving_default"](tf.constant(image))["scores"]
    layer = keras.layers.TFSMLayer(str(path), call_endpoint="serving_default")(image)["scores"]
    for answer in (loaded, layer, ask(path, {"image": image})["scores"]):
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)


def test_retrofitted_bn_is_exported_as_the_identity_it_is(tmp_path):
    # All the same multiplications and additions, then one by 1 and one of 0: equal to the bit.
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(20, activation="relu", name="dense"),
            layers.Dense(3, name="scores"),
        ]
    )
    image = normal(64, 8, 8, 3)
    retrofitted = keras_bn.retrofit(model, image, progress=False).model
    assert len(retrofitted.layers) > len(model.layers)
    answers = [
        ask(keras_bn.export(each, tmp_path, fold=False), {"image": image})["scores"]
        for each in (model, retrofitted)
    ]
    np.testing.assert_array_equal(*answers)


def test_bn_with_the_gamma_and_beta_of_a_retrofit_is_the_identity_to_the_bit(tmp_path):
    channels = 4096
    mean, variance = normal(channels), np.random.default_rng(1).gamma(0.3, 10, channels).astype(np.float32)
    inputs = keras.Input((channels,), name="x")
    bn = keras_bn.BatchNormalization(name="y")
    model = keras.Model(inputs, bn(inputs))
    bn.set_weights([np.sqrt(variance + np.float32(bn.epsilon)), mean, mean, variance])
    x = 100 * normal(3, channels)
    np.testing.assert_array_equal(ask(keras_bn.export(model, tmp_path, fold=False), {"x": x})["y"], x)


def operations(path):
    loaded = tf.saved_model.load(str(path))
    return [operation.type for operation in loaded.signatures["serving_default"].graph.get_operations()]


def test_folding_leaves_no_normalization_in_the_graph(tmp_path):
    folded = operations(keras_bn.export(conv_net(), tmp_path))
    kept = operations(keras_bn.export(conv_net(), tmp_path, fold=False))
    assert folded.count("Mul") == 0 < kept.count("Mul")


def size_of(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.fixture
def large():
    """A megabyte of weights, of which 64 kB are of one kernel and the rest of another."""
    inputs = keras.Input((64,), name="x")
    x = layers.Dense(256, name="small")(inputs)
    return keras.Model(inputs, layers.Dense(900, name="large")(x))


def weights_of(model):
    return sum(weight.numpy().nbytes for weight in model.weights)


def test_every_weight_is_written_once(tmp_path, large):
    path = keras_bn.export(large, tmp_path / "ours", warmup=False)
    large.export(tmp_path / "keras", verbose=False)
    assert not (path / "variables").exists()
    assert size_of(path) < weights_of(large) + 20_000
    assert size_of(path) <= 0.55 * size_of(tmp_path / "keras")


def test_largest_weights_stay_variables(tmp_path, large, monkeypatch):
    monkeypatch.setattr(saved_model, "LARGEST_CONSTANTS", 100_000)
    path = keras_bn.export(large, tmp_path, warmup=False)
    assert size_of(path) < weights_of(large) + 50_000
    names = [name for name, _ in tf.train.list_variables(str(path / "variables" / "variables"))]
    shapes = [shape for _, shape in tf.train.list_variables(str(path / "variables" / "variables"))]
    assert [256, 900] in shapes and [64, 256] not in shapes, names
    x = normal(2, 64)
    np.testing.assert_allclose(
        ask(path, {"x": x})["large"], large.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )


def test_lookup_tables_are_filled_when_loaded(tmp_path):
    words = keras.Input((), dtype="string", name="word")
    x = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(words)
    model = keras.Model(words, layers.Dense(3, name="y")(x))
    path = keras_bn.export(model, tmp_path, examples=["a", "b", "?"])
    asked = np.array(["b", "a"])
    np.testing.assert_allclose(
        ask(path, {"word": asked})["y"], model.predict(tf.constant(asked), verbose=0), rtol=1e-6
    )
    with pytest.raises(keras_bn.KerasBNError, match="takes strings, which cannot be made up"):
        keras_bn.export(model, tmp_path)
    assert os.listdir(tmp_path) == ["1"]


@pytest.mark.parametrize("limit", [2**27, 0])
def test_full_disk(tmp_path, large, monkeypatch, limit):
    monkeypatch.setattr(saved_model, "LARGEST_CONSTANTS", limit)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, hard))
    try:
        with pytest.raises(keras_bn.KerasBNError, match="could not write a version into"):
            keras_bn.export(large, tmp_path / "models")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "models").exists()
