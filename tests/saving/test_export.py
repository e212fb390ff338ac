"""Exported versions against the Keras model they come from."""

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow_serving.apis import prediction_log_pb2

import keras_bn
from keras_bn.saving.session import servable


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def conv_net(norm=layers.BatchNormalization):
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = norm(moving_mean_initializer="normal", gamma_initializer="uniform", name="bn")(x)
    x = layers.Dropout(0.5)(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(x)), name="net")


def sequential():
    return keras.Sequential([keras.Input((5,), name="x"), layers.Dense(4), layers.BatchNormalization()])


def nested():
    inputs = keras.Input((8, 8, 3), name="image")
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Dense(3)(conv_net()(inputs))))


def named():
    x, y = keras.Input((3,), name="x"), keras.Input((3,), name="y")
    shared = layers.Dense(2, name="shared")
    return keras.Model(
        {"x": x, "y": y}, {"second": shared(x), "first": layers.Add(name="sum")([shared(y), x[:, :2]])}
    )


def listed():
    # In this order, which is not that of the names.
    y, x = keras.Input((3,), name="b"), keras.Input((4,), name="a")
    shared = layers.Dense(2, name="shared")
    return keras.Model([y, x], [shared(y), layers.Dense(3, name="other")(x), shared(y * 2)])


def recurrent():
    words = keras.Input((6,), dtype="int32", name="words")
    x = layers.Embedding(9, 4, mask_zero=True)(words)
    return keras.Model(words, layers.Dense(2, name="y")(layers.Bidirectional(layers.LSTM(3))(x)))


def mixed():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, dtype="mixed_float16")(inputs)
    x = layers.BatchNormalization(dtype="mixed_float16")(x)
    return keras.Model(inputs, layers.Dense(2, name="y", dtype="float32")(layers.Flatten()(x)))


def with_a_table():
    class Constant(layers.Layer):
        def build(self, shape):
            self.table = tf.constant(normal(300, 3))  # no variable, and too large to be inlined when traced

        def call(self, x):
            return tf.gather(self.table, x)

    words = keras.Input((4,), dtype="int32", name="words")
    return keras.Model(words, layers.Flatten(name="y")(Constant()(words)))


MODELS = [conv_net, sequential, nested, named, listed, recurrent, mixed, with_a_table]


def inputs_of(model, count=5):
    def values(tensor):
        shape = (count, *tensor.shape[1:])
        if tensor.dtype == "int32":
            return np.random.default_rng(1).integers(0, 2, shape, np.int32)
        return normal(*shape)

    return keras.tree.map_structure(values, model.input if hasattr(model, "input") else model.inputs[0])


def ask(path, inputs, signature="serving_default"):
    with servable(path, signature) as served:
        return served.run(inputs)


def by_name(model, inputs):
    """The inputs of `predict` as those of a request."""
    if isinstance(inputs, dict):
        return inputs
    inputs = keras.tree.flatten(inputs)
    return {tensor.name: value for tensor, value in zip(model.inputs, inputs, strict=True)}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("make", MODELS)
def test_answers_are_those_of_the_model(tmp_path, make, fold):
    model = make()
    inputs = inputs_of(model)
    expected = keras.tree.flatten(model.predict(inputs, verbose=0))
    answers = ask(keras_bn.export(model, tmp_path, fold=fold), by_name(model, inputs))
    assert len(answers) == len(expected)
    # Rounding: of float16 in the mixed model, else of float32 sums in another order.
    tolerance = 2e-3 if make is mixed else 2e-6
    for answer in answers.values():
        assert any(
            answer.shape == value.shape and np.abs(answer - value).max() <= tolerance * np.abs(value).max()
            for value in expected
        )


@pytest.mark.parametrize(
    "make, names",
    [
        (conv_net, (["image"], ["scores"])),
        (nested, (["image"], ["head"])),
        (named, (["x", "y"], ["first", "second"])),
        (listed, (["a", "b"], ["other", "shared", "shared_1"])),
    ],
)
def test_signature_has_the_names_of_the_model(tmp_path, make, names):
    loaded = tf.saved_model.load(str(keras_bn.export(make(), tmp_path)))
    assert list(loaded.signatures) == ["serving_default"]
    signature = loaded.signatures["serving_default"]
    inputs = signature.structured_input_signature[1]
    assert (sorted(inputs), sorted(signature.structured_outputs)) == names
    assert {spec.shape[0] for spec in inputs.values()} == {None}


def test_outputs_have_the_right_names(tmp_path):
    model = named()
    inputs = inputs_of(model)
    answers, expected = ask(keras_bn.export(model, tmp_path), inputs), model.predict(inputs, verbose=0)
    for name, value in expected.items():
        np.testing.assert_allclose(answers[name], value, rtol=1e-5, atol=1e-6)


def test_names_that_a_signature_cannot_have(tmp_path):
    inputs = keras.Input((3,), name="_my-image 1")
    path = keras_bn.export(keras.Model(inputs, layers.Dense(2, name="my-scores")(inputs)), tmp_path)
    assert set(ask(path, {"_my_image_1": normal(2, 3)})) == {"my-scores"}


def warm_up_requests(path):
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    logs = [
        prediction_log_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(file))
    ]
    requests = [log.predict_log.request for log in logs]
    return [
        (r.model_spec.signature_name, {name: tf.make_ndarray(value) for name, value in r.inputs.items()})
        for r in requests
    ]


def test_warm_up_is_one_example(tmp_path):
    [(signature, inputs)] = warm_up_requests(keras_bn.export(conv_net(), tmp_path))
    assert signature == "serving_default"
    np.testing.assert_array_equal(inputs["image"], np.zeros((1, 8, 8, 3)))


def test_warm_up_is_the_first_example_or_what_is_given(tmp_path):
    images, batch = normal(4, 8, 8, 3), normal(7, 8, 8, 3) + 1
    [(_, inputs)] = warm_up_requests(keras_bn.export(conv_net(), tmp_path, examples=images))
    np.testing.assert_array_equal(inputs["image"], images[:1])
    [(_, inputs)] = warm_up_requests(keras_bn.export(conv_net(), tmp_path, warmup={"image": batch}))
    np.testing.assert_array_equal(inputs["image"], batch)
    path = keras_bn.export(conv_net(), tmp_path, warmup=False)
    assert not (path / "assets.extra" / "tf_serving_warmup_requests").exists()


def test_record_tells_what_was_measured_and_folded(tmp_path):
    path = keras_bn.export(conv_net(), tmp_path)
    record = json.loads((path / "assets.extra" / "keras_bn_export.json").read_text())
    [check] = record["checks"]
    assert check["difference"] <= check["tolerance"] < check["spread"]
    assert record["difference"] <= check["tolerance"]
    [row] = record["fold"]["rows"]
    assert (row["layer"], row["action"]) == ("bn", "folded")
    assert record["made_with"]["keras"] == keras.__version__


def test_model_is_left_alone(tmp_path):
    model = conv_net()
    model.compile("sgd", "mse")
    before = [weight.numpy() for weight in model.weights]
    keras_bn.export(model, tmp_path)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    assert model.get_layer("bn").trainable and model.optimizer is not None


class AlwaysTraining(layers.Layer):
    """What a careless author writes: BN that normalizes by the batch, whoever calls."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bn = layers.BatchNormalization()

    def call(self, x):
        return self.bn(x, training=True)


class BatchMean(layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0)


class Noise(layers.Layer):
    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


class Seeded(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = layers.Dropout(0.5)

    def call(self, x):
        return self.dropout(x, training=True)


@pytest.mark.parametrize(
    "layer, message",
    [
        (AlwaysTraining, "changes .*moving_mean when it answers; call its layers with training=False"),
        (Seeded, "changes .*seed_generator_state when it answers"),
        (BatchMean, "'net' depends on the other rows"),
        (Noise, "'net' answers the same request differently each time .* dropout"),
    ],
)
def test_what_is_not_in_inference_mode_never_appears(tmp_path, layer, message):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, layers.Dense(2)(layer()(inputs)), name="net")
    with pytest.raises(keras_bn.KerasBNError, match=message):
        keras_bn.export(model, tmp_path / "models", fold=False)
    assert not (tmp_path / "models").exists()


def test_training_true_in_the_graph_of_a_model_is_overruled(tmp_path):
    inputs = keras.Input((4,), name="x")
    x = layers.Dropout(0.5)(layers.Dense(3)(inputs), training=True)
    model = keras.Model(inputs, layers.Dense(2, name="y")(x))
    x = normal(3, 4)
    np.testing.assert_allclose(
        ask(keras_bn.export(model, tmp_path), {"x": x})["y"],
        model.predict(x, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def called(model):
    model(normal(2, 3))
    return model


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: keras.Sequential([layers.Dense(2)]), "is not built"),
        (Subclassed, "'mine' is a subclassed Subclassed"),
        (lambda: called(Subclassed()), "'mine' is a subclassed Subclassed"),
        (lambda: layers.Dense(2), "expected a Keras model, got Dense"),
    ],
)
@pytest.mark.parametrize("fold", [True, False])
def test_what_is_no_graph_of_layers(tmp_path, make, message, fold):
    with pytest.raises(keras_bn.KerasBNError, match=message):
        keras_bn.export(make(), tmp_path, fold=fold)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"version": -3}, "version must be an integer"),
        ({"version": 1.5}, "version must be an integer"),
        ({"examples": normal(3, 5)}, r"have shape \(3, 5\); the model takes \(None, 8, 8, 3\)"),
        ({"examples": normal(1, 8, 8, 3)}, "one cannot be seen to change another"),
        (
            {"warmup": {"picture": normal(1, 8, 8, 3)}},
            "examples must be given for the inputs image; got picture",
        ),
        (
            {"image_bytes": "bgr"},
            "image_bytes must be one of raw, caffe, tf, torch, or a function; got 'bgr'",
        ),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, arguments, message):
    with pytest.raises(keras_bn.KerasBNError, match=message):
        keras_bn.export(conv_net(), tmp_path, **arguments)
    assert os.listdir(tmp_path) == []


def test_existing_version_is_kept(tmp_path):
    path = keras_bn.export(conv_net(), tmp_path, version=7)
    before = (path / "saved_model.pb").read_bytes()
    with pytest.raises(keras_bn.KerasBNError, match="version 7 exists already"):
        keras_bn.export(conv_net(), tmp_path, version=7)
    assert (path / "saved_model.pb").read_bytes() == before
    assert keras_bn.export(conv_net(), tmp_path).name == "8"


@pytest.mark.parametrize("variable", [0, 3])
def test_nan_in_the_weights(tmp_path, variable):
    model = sequential()
    model.weights[variable].assign(np.full(model.weights[variable].shape, np.nan))
    with pytest.raises(keras_bn.KerasBNError, match=r"(?i)nan|not finite"):
        keras_bn.export(model, tmp_path)
    assert os.listdir(tmp_path) == []


def test_another_backend(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(keras_bn.KerasBNError, match="made with Keras on TensorFlow, not on jax"):
        keras_bn.export(conv_net(), tmp_path)
