"""Exported versions against the Keras model they come from."""

import inspect
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

import keras_bn
import keras_bn.saving.record
from keras_bn.saving.session import servable
from tests.surgery import people


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
        self.blocks = [Block(4), Block(6)]
        self.dense = layers.Dense(2)

    def call(self, image, training=None):
        for block in self.blocks:
            image = block(image, training=training)
        return {"scores": self.dense(keras.ops.mean(image, (1, 2)))}


class Block(layers.Layer):
    """What people write: BN behind a convolution inside a layer without a config."""

    def __init__(self, filters):
        super().__init__()
        self.conv = layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.depthwise = layers.DepthwiseConv2D(3)
        self.bn = layers.BatchNormalization(moving_mean_initializer="normal", gamma_initializer="uniform")
        self.second = keras_bn.BatchNormalization(beta_initializer="normal", moving_mean_initializer="normal")

    def call(self, x, training=None):
        x = keras.ops.relu(self.bn(self.conv(x), training=training))
        return keras.ops.relu(self.second(self.depthwise(x), training=training))


def called(model):
    model(normal(2, 8, 8, 3))
    return model


def graph_of(path):
    written = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    return written.meta_graphs[0].graph_def


def operations(path):
    loaded = tf.saved_model.load(str(path))
    return [operation.type for operation in loaded.signatures["serving_default"].graph.get_operations()]


def in_custom_layers():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Flatten()(Block(6)(Block(4)(inputs)))
    return keras.Model(inputs, layers.Dense(2, name="scores")(x))


def unfoldable(model):
    raise keras_bn.KerasBNError("layer 'block' cannot be recreated.")


@pytest.mark.parametrize("layers_fold", [True, False])
@pytest.mark.parametrize("make", [in_custom_layers, lambda: called(Subclassed())])
def test_bn_inside_layers_of_ones_own_is_folded_as_layers_or_in_the_graph(
    tmp_path, monkeypatch, recwarn, make, layers_fold
):
    if not layers_fold:
        monkeypatch.setattr("keras_bn.saving.write_version.fold_model", unfoldable)
    model, images = make(), normal(3, 8, 8, 3)
    before = [weight.numpy() for weight in model.weights]
    path = keras_bn.export(model, tmp_path, examples=images)
    expected = model.predict(images, verbose=0)
    expected = expected["scores"] if isinstance(expected, dict) else expected
    # Rounding of float32 sums in another order.
    np.testing.assert_allclose(ask(path, {"image": images})["scores"], expected, rtol=2e-5, atol=2e-6)
    assert not {"Mul", "Rsqrt", "AddV2", "Sub"} & set(operations(path))
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    said = [str(warning.message) for warning in recwarn if "were not folded" in str(warning.message)]
    record = keras_bn.saving.record.read_record(path)["fold"]
    if layers_fold:
        assert not said and "reason" not in record
    else:
        assert "'block' cannot be recreated" in said[0] and "'block' cannot" in record["reason"]
        assert record["operations"] >= 2


def test_shapes_of_a_subclassed_model_come_from_the_examples(tmp_path):
    model, images = Subclassed(), normal(3, 8, 8, 3)
    path = keras_bn.export(model, tmp_path, examples=images)
    np.testing.assert_allclose(
        ask(path, {"image": images})["scores"],
        model.predict(images, verbose=0)["scores"],
        rtol=2e-5,
        atol=2e-6,
    )


def test_an_open_number_of_steps_under_time_distributed_is_named(tmp_path):
    inputs = keras.Input((None, 3))
    x = layers.TimeDistributed(layers.Dense(4), name="each")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))
    # If a release of Keras computes it rightly, it is exported and this hint can go.
    with pytest.raises(
        keras_bn.KerasBNError, match="'each' is a TimeDistributed with an open number of steps"
    ):
        keras_bn.export(model, tmp_path)


def test_a_subclassed_model_inside_another_keeps_the_names_of_the_outer_one(tmp_path):
    inputs = keras.Input((8, 8, 3), name="image")
    model = keras.Model(inputs, called(Subclassed())(inputs))
    path, images = keras_bn.export(model, tmp_path), normal(2, 8, 8, 3)
    np.testing.assert_allclose(
        ask(path, {"image": images})["scores"],
        model.predict(images, verbose=0)["scores"],
        rtol=2e-5,
        atol=2e-6,
    )


class Words(keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(9, 4)

    def call(self, features):
        return keras.ops.sum(self.embedding(features["words"]), 1), features["bias"] * 2


def test_dicts_of_other_types_in_a_subclassed_model(tmp_path):
    model = Words()
    examples = {"words": np.array([[1, 8], [3, 2], [0, 0]]), "bias": normal(3, 2)}
    path = keras_bn.export(model, tmp_path, examples=examples)
    answers = ask(path, examples)
    np.testing.assert_allclose(answers["output_1"], 2 * examples["bias"], rtol=1e-6)
    np.testing.assert_allclose(answers["output_0"], model(examples)[0], rtol=1e-6)


class Nested(keras.Model):
    """Takes dictionaries in a dictionary."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.bn = layers.Dense(3), layers.BatchNormalization()

    def call(self, inputs):
        left, right = inputs["pair"]["left"], inputs["pair"]["right"]
        return self.bn(self.dense(inputs["x"])) + left[0] - right


class Traced(Nested):
    """Its call cannot be seen as a graph."""

    def call(self, inputs):
        return super().call(inputs) + tf.cast(tf.shape(inputs["x"])[1], "float32")


@pytest.mark.parametrize("make", [Nested, Traced])
@pytest.mark.parametrize("given", [False, True])
def test_nested_inputs_of_a_subclassed_model(tmp_path, make, given):
    model = make()
    x = {"x": normal(4, 5), "pair": {"left": [normal(4, 3)], "right": 2 * normal(4, 3)}}
    model(x)
    people.scramble(model)
    path = keras_bn.export(model, tmp_path, **({"examples": x, "warmup": x} if given else {}))
    flat = {"x": x["x"], "pair_left_0": x["pair"]["left"][0], "pair_right": x["pair"]["right"]}
    for rows in (slice(None), slice(1)):
        answers = ask(path, {name: values[rows] for name, values in flat.items()})
        expected = keras.ops.convert_to_numpy(model(keras.tree.map_structure(lambda v, r=rows: v[r], x)))
        np.testing.assert_allclose(answers["output_0"], expected, rtol=1e-5, atol=1e-6)


def test_nested_inputs_of_a_graph_are_given_as_the_model_takes_them(tmp_path):
    x, y, z = (keras.Input((size,), name=name) for size, name in ((3, "x"), (2, "y"), (4, "z")))
    outputs = layers.Dense(2, name="out")(layers.Concatenate()([x, y, z]))
    model = keras.Model({"a": x, "b": {"c": y, "d": [z]}}, outputs)
    flat = {"x": normal(3, 3), "y": normal(3, 2), "z": normal(3, 4)}
    examples = {"a": flat["x"], "b": {"c": flat["y"], "d": [flat["z"]]}}
    answers = ask(keras_bn.export(model, tmp_path, examples=examples), flat)
    np.testing.assert_allclose(answers["out"], model.predict(examples, verbose=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_stateful_layer_is_refused_by_name_and_its_state_left_alone(tmp_path, called_before):
    inputs = keras.Input(batch_shape=(3, 5, 2))
    model = keras.Model(inputs, layers.GRU(4, stateful=True, name="memory")(inputs))
    if called_before:
        model(normal(3, 5, 2))
    before = [np.asarray(variable) for variable in model.variables]
    with pytest.raises(keras_bn.KerasBNError, match=r"layer 'memory' \(GRU\) .* is stateful"):
        keras_bn.export(model, tmp_path)
    assert len(before) == len(model.variables)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_fixed_batch_size_is_kept(tmp_path):
    inputs = keras.Input(batch_shape=(3, 5, 2), name="x")
    model = keras.Model(inputs, layers.GRU(4, name="y")(inputs))
    path = keras_bn.export(model, tmp_path)
    x = normal(3, 5, 2)
    np.testing.assert_allclose(
        ask(path, {"x": x})["y"], model.predict(x, verbose=0, batch_size=3), rtol=1e-5, atol=1e-6
    )
    [(_, inputs)] = warm_up_requests(path)
    assert inputs["x"].shape == (3, 5, 2)


def test_warm_up_of_every_batch_size(tmp_path):
    images = normal(2, 8, 8, 3)
    path = keras_bn.export(conv_net(), tmp_path, warmup=images, batch_sizes=(1, 2, 4))
    requests = [inputs["image"] for _, inputs in warm_up_requests(path)]
    assert [len(request) for request in requests] == [1, 2, 4]
    np.testing.assert_array_equal(requests[2], np.concatenate([images, images]))


def residual():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(inputs)))
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="scores")(x))


def test_every_operation_has_the_attributes_of_its_kind_alone(tmp_path):
    for make in (residual, in_custom_layers, recurrent):
        graph = graph_of(keras_bn.export(make(), tmp_path))
        known = tf.raw_ops
        for node in graph.node:
            arguments = set(inspect.signature(getattr(known, node.op.removeprefix("_"))).parameters)
            assert {name for name in node.attr if name in ("data_format", "epsilon")} <= arguments, node.op


@pytest.mark.parametrize("make", [conv_net, nested, residual, in_custom_layers])
def test_bfloat16(tmp_path, make, capsys):
    model, images = make(), normal(64, 8, 8, 3)
    path = keras_bn.export(model, tmp_path, precision="bfloat16", examples=images)
    record = keras_bn.saving.record.read_record(path)
    fidelity = record["fidelity"]
    # bfloat16 has 8 bits: one rounding is 2**-9 of the value.
    assert 2**-12 < fidelity["difference"] <= fidelity["tolerance"] == 0.05
    assert fidelity["examples"] == 64 and 0.8 < fidelity["agreement"] <= 1
    assert "bfloat16: outputs change by at most" in capsys.readouterr().err
    with servable(path, "serving_default") as served:
        assert {spec.dtype for spec in served.inputs.values()} == {tf.float32}
        answer = served.run({"image": images})
    expected = model.predict(images, verbose=0)
    for value in answer.values():
        assert value.dtype == np.float32
        assert np.abs(value - expected).max() <= 0.05 * np.abs(expected).max()


def test_bfloat16_stores_half_the_bytes(tmp_path):
    inputs = keras.Input((8, 8, 64), name="image")
    model = keras.Model(inputs, layers.Conv2D(256, 3, name="y")(inputs))
    sizes = [
        (keras_bn.export(model, tmp_path, precision=precision, warmup=False) / "saved_model.pb")
        .stat()
        .st_size
        for precision in ("float32", "bfloat16")
    ]
    assert sizes[1] < 0.51 * sizes[0]


def test_no_version_appears_beyond_the_tolerance(tmp_path):
    with pytest.raises(keras_bn.KerasBNError, match="more than tolerance=1e-05; no version was written"):
        keras_bn.export(conv_net(), tmp_path, precision="bfloat16", tolerance=1e-5)
    assert os.listdir(tmp_path) == []


# In bfloat16, fused operations round once where others round at each step.
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-6), ("bfloat16", 0.02)])
def test_a_fused_graph_answers_the_same(tmp_path, precision, tolerance):
    model, images = conv_net(), normal(5, 8, 8, 3)
    path = keras_bn.export(model, tmp_path, fused=True, precision=precision)
    assert "_MklNativeFusedConv2D" in operations(path)
    assert (path / "assets.extra" / "saved_model_config.pb").read_bytes() == b"\x0a\x02\x18\x01"
    expected = model.predict(images, verbose=0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        ask(path, {"image": images})["scores"], expected, rtol=0, atol=tolerance * scale
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: keras.Sequential([layers.Dense(2)]), "is not built"),
        (Subclassed, "'mine' is a subclassed Subclassed that is not built"),
        (lambda: layers.Dense(2), r"Expected a keras.Model, got Dense"),
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
        ({"precision": "float16"}, "precision must be 'float32' or 'bfloat16'; got 'float16'"),
        ({"tolerance": 0}, "tolerance must be a finite number above 0"),
        ({"tolerance": float("inf")}, "tolerance must be a finite number above 0"),
        ({"tolerance": "0.1"}, "tolerance must be a finite number above 0, or None; got '0.1'"),
        ({"tolerance": True}, "tolerance must be a finite number above 0"),
        ({"fused": "yes"}, "fused must be True or False; got 'yes'"),
        ({"batch_sizes": (1, 0)}, "batch_sizes must be a sequence of integers of at least 1"),
        ({"batch_sizes": 4}, "batch_sizes must be a sequence of integers of at least 1, or None; got 4"),
        ({"batch_sizes": []}, "batch_sizes must be a sequence of integers of at least 1"),
        ({"batch_sizes": "4"}, "batch_sizes must be a sequence of integers of at least 1"),
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


@pytest.mark.parametrize("normalized", [False, True])
def test_a_layer_that_cannot_be_copied_by_its_configuration(tmp_path, normalized):
    inputs = keras.Input((6, 6, 3), name="image")
    x = people.Misconfigured(layers.Conv2D(4, 3))(inputs)
    model = keras.Model(inputs, layers.BatchNormalization()(x) if normalized else x)
    path = keras_bn.export(model, tmp_path / "model")
    x = normal(3, 6, 6, 3)
    (answer,) = ask(path, {"image": x}).values()
    np.testing.assert_allclose(answer, model(x), rtol=1e-5, atol=1e-5)
