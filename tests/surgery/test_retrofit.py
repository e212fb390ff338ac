import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_bn
from keras_bn import BatchNormalization, KerasBNError
from keras_bn.surgery._compiled import compiled


def retrofit(model, data, **options):
    return keras_bn.retrofit(model, data, progress=False, **options)


def predict(model, inputs):
    return [np.asarray(leaf) for leaf in keras.tree.flatten(model.predict_on_batch(inputs))]


def inserted(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, BatchNormalization)]


def rows(result, action="retrofitted"):
    return {row.layer: row for row in result.report.rows if row.action == action}


def net(**options):
    """A small VGG."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1", **options)(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="conv2", bias_initializer="normal")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Dropout(0.25, name="dropout")(layers.Flatten(name="flatten")(x))
    x = layers.Dense(8, activation="relu", name="fc", bias_initializer="normal")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="predictions")(x), name="net")


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype("float32")


def test_outputs_stay(donor, snapshot):
    model, inputs = donor
    before, expected = snapshot(model), predict(model, inputs)
    result = retrofit(model, inputs, batch_size=8)
    assert snapshot(model) == before
    assert inserted(result.model)
    # A fused activation may have been another kernel; at 16 bits that is an ulp of 2**-11.
    tolerance = 1e-2 if model.name == "policies" else 1e-6
    for old, new in zip(expected, predict(result.model, inputs), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * np.abs(old).max())
    assert result.report.difference <= tolerance * max(np.abs(old).max() for old in expected)
    assert all(row.difference == 0 for row in rows(result).values())


def test_every_inserted_layer_is_the_identity_bit_for_bit(donor):
    model, inputs = donor
    for layer in inserted(retrofit(model, inputs).model):
        affine = compiled(lambda _, layer=layer: layer.inference_affine(), [layer], [], [])
        scale, offset = map(ops.convert_to_numpy, affine([]))
        assert np.array_equal(scale, np.ones_like(scale))
        assert np.array_equal(offset, np.zeros_like(offset))


def test_names_and_order():
    result = retrofit(net(), np.ones((4, 8, 8, 3)))
    names = [layer.name for layer in result.model.layers]
    assert names == [
        *("image", "conv1", "conv1_bn", "conv1_relu", "conv2", "conv2_bn", "conv2_relu", "pool"),
        *("flatten", "dropout", "fc", "fc_bn", "fc_relu", "predictions"),
    ]
    assert result.model.output_names == ["predictions"]
    assert [row.layer for row in result.report.rows] == ["conv1", "conv2", "fc", "predictions"]
    assert result.report.rows[-1].reason == "gives an output of the model"


def test_statistics_are_those_of_the_whole_data_set(images):
    model = net()
    result = retrofit(model, images, batch_size=16)
    outputs = keras.Model(model.inputs, model.get_layer("conv1").output).predict_on_batch(images)
    linear = model.get_layer("conv1").kernel.value
    values = ops.convert_to_numpy(ops.conv(images, linear, padding="same")).astype("float64").reshape(-1, 4)
    layer = result.model.get_layer("conv1_bn")
    assert outputs.shape[-1] == 4
    # float32 activations, reduced row by row: relative error below 2**-22
    np.testing.assert_allclose(layer.moving_mean, values.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, values.var(0, ddof=1), rtol=1e-6)
    np.testing.assert_array_equal(layer.beta, layer.moving_mean)
    deviation = ops.sqrt(ops.convert_to_tensor(layer.moving_variance) + layer.epsilon)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (layer.gamma, deviation)))


def test_statistics_do_not_depend_on_how_the_data_is_cut(images):
    model = net()
    whole = inserted(retrofit(model, images, batch_size=40).model)
    for batch_size in (1, 7):
        for one, other in zip(
            whole, inserted(retrofit(model, images, batch_size=batch_size).model), strict=True
        ):
            for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # the convolution's own rounding


@pytest.mark.parametrize("form", ["generator", "pydataset"])
def test_data_is_what_predict_takes(form, images):
    class Pairs(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return images[8 * index : 8 * index + 8], np.zeros(8)

    data = {
        "generator": (images[i : i + 8] for i in range(0, 40, 8)),
        "pydataset": Pairs(),
    }[form]
    model = net()
    expected = inserted(retrofit(model, images, batch_size=8).model)
    for one, other in zip(expected, inserted(retrofit(model, data).model), strict=True):
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_masked_positions_do_not_count():
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(5, 3, mask_zero=True)(tokens)
    x = layers.Dense(3, name="dense")(x)
    model = keras.Model(tokens, layers.Dense(1, name="out")(layers.GlobalAveragePooling1D()(x)))
    data = np.array([[1, 2, 0, 0], [3, 4, 1, 0]])
    embedded = ops.convert_to_numpy(model.layers[1](np.array([1, 2, 3, 4, 1]))).astype("float64")
    values = embedded @ np.asarray(model.get_layer("dense").kernel, "float64")
    layer = retrofit(model, data).model.get_layer("dense_bn")
    np.testing.assert_allclose(layer.moving_mean, values.mean(0), atol=1e-7)


def test_a_shared_layer_gets_one_normalization_per_call():
    inputs = keras.Input((3,))
    shared = layers.Dense(3, activation="relu", name="shared")
    model = keras.Model(inputs, layers.Dense(1, name="out")(shared(shared(inputs))))
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    result = retrofit(model, x)
    assert list(rows(result)) == ["shared", "shared (call 2)"]
    first, second = inserted(result.model)
    assert {first.name, second.name} == {"shared_bn", "shared_bn_2"}
    assert not np.allclose(first.moving_mean, second.moving_mean)
    assert sum(layer.name == "shared" for layer in result.model.layers) == 1


def test_a_layer_already_followed_by_a_normalization_is_left_alone():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, use_bias=False, name="conv")])
    for layer in (layers.ReLU(), layers.BatchNormalization(name="bn"), layers.Flatten()):
        model.add(layer)
    for layer in (layers.Dense(4, name="fc"), layers.LayerNormalization(name="ln")):
        model.add(layer)
    model.add(layers.Dense(4, name="free"))
    model.add(layers.Dense(2, name="out"))
    result = retrofit(model, np.ones((4, 8, 8, 3)))
    reasons = {path: row.reason for path, row in rows(result, "left alone").items()}
    assert reasons["conv"] == "already followed by BatchNormalization 'bn'"
    assert reasons["fc"] == "already followed by LayerNormalization 'ln'"
    assert list(rows(result)) == ["free"]


def test_the_output_layer_is_seen_through_activations_and_reshapes():
    inputs = keras.Input((4,))
    x = layers.Dense(6, name="logits")(layers.Dense(3, name="hidden")(inputs))
    model = keras.Model(inputs, keras.ops.softmax(layers.Reshape((2, 3))(x)))
    assert list(rows(retrofit(model, np.ones((2, 4))))) == ["hidden"]


def test_layers_inside_a_wrapper_are_reported():
    model = keras.Sequential(
        [keras.Input((5, 4)), layers.SpectralNormalization(layers.Dense(3, name="in"), name="sn")]
    )
    for layer in (layers.Dense(3, name="fc"), layers.Dense(1, name="out")):
        model.add(layer)
    row = rows(retrofit(model, np.ones((2, 5, 4))), "left alone")["sn/in"]
    assert row.reason.startswith("inside SpectralNormalization, whose graph cannot be seen")


def head_of_convolution(x):
    return layers.Softmax()(layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1, name="logits")(x)))


def upsampled(x):
    return layers.Cropping2D(1)(layers.UpSampling2D(2)(layers.Conv2D(3, 1, name="logits")(x)))


def concatenated(x):
    boxes = [layers.Reshape((-1, 4))(layers.Conv2D(n, 3, name=f"boxes{n}")(x)) for n in (4, 8)]
    return layers.Concatenate(1)(boxes)


def dueling(x):
    x = layers.Flatten()(x)
    value, advantage = layers.Dense(1, name="value")(x), layers.Dense(3, name="advantage")(x)
    return value + advantage - keras.ops.mean(advantage, -1, keepdims=True)


def sliced(x):
    logits = layers.Conv2D(4, 1, name="logits")(x)
    return {"classes": keras.ops.softmax(logits[..., :3]), "mask": keras.ops.sigmoid(logits[..., 3:])}


def twice_the_same(x):
    logits = layers.Conv2D(3, 1, name="logits")(x)
    return layers.Maximum()([logits, layers.MaxPooling2D(3, 1, padding="same")(logits)])


HEADS = (head_of_convolution, upsampled, concatenated, dueling, sliced, twice_the_same)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_the_answers_of_a_network_are_left_alone(head, images):
    inputs = keras.Input((8, 8, 3))
    hidden = layers.Conv2D(4, 3, padding="same", activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, head(hidden))
    result = retrofit(model, images)
    assert list(rows(result)) == ["hidden"]
    assert {row.reason for row in rows(result, "left alone").values()} == {"gives an output of the model"}


def test_an_answer_that_is_named_is_normalized(images):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, head_of_convolution(inputs))
    assert list(rows(retrofit(model, images, layers="logits"))) == ["logits"]


class Plain(layers.Layer):
    """A block without normalization; what it does in training is an argument."""

    def __init__(self, training=None, loss=False, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.drop = layers.Conv2D(4, 3, name="conv"), layers.Dropout(0.5, seed=1)
        self.in_training, self.loss = training, loss

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x, training=None):
        y = keras.ops.relu(self.conv(x))
        if self.loss:
            self.add_loss(keras.ops.mean(y))
        if self.in_training and training:
            return y * 2
        return self.drop(y, training=training)


def with_block(**options):
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(Plain(name="block", **options)(Plain(name="first", **options)(inputs)))
    return keras.Model(inputs, layers.Dense(2)(x))


def test_layers_inside_a_layer_of_one_s_own_are_retrofitted(images, tmp_path):
    model = with_block()
    result = retrofit(model, images)
    assert list(rows(result)) == ["first/conv", "block/conv"]
    assert "Plain" in result.report.notes[0]
    np.testing.assert_array_equal(predict(result.model, images)[0], predict(model, images)[0])
    result.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(loaded, images)[0], predict(model, images)[0])


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"training": True}, "something else in training"), ({"loss": True}, "adds losses")],
)
def test_a_layer_that_trains_otherwise_is_left_alone(options, reason, images):
    with pytest.raises(KerasBNError, match=reason):
        retrofit(with_block(**options), images)


def test_a_subclassed_model_becomes_a_graph():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = layers.Dense(4, "relu", name="hidden"), layers.Dense(2, name="out")

        def call(self, x):
            return self.out(self.hidden(x))

    model, x = Net(), np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    model(x)
    result = retrofit(model, x)
    assert list(rows(result)) == ["hidden"]
    np.testing.assert_array_equal(predict(result.model, x)[0], predict(model, x)[0])


def test_layers_may_be_chosen(images):
    model = net()
    for choice, expected in (
        (layers.Dense, ["fc"]),
        ("conv*", ["conv1", "conv2"]),
        (lambda layer: getattr(layer, "filters", 0) == 4, ["conv1", "conv2"]),
        (["conv2", layers.Dense], ["conv2", "fc"]),
    ):
        assert list(rows(retrofit(model, images, layers=choice))) == expected


def test_a_choice_that_cannot_be_normalized_is_reported(images):
    result = retrofit(net(), images, layers=["conv1", "pool"])
    assert rows(result, "left alone")["pool"].reason == "a normalization does not go after a MaxPooling2D"


def test_after_the_activation(images):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="fused")(inputs)
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="apart")(x))
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Flatten()(x)))
    result = retrofit(model, images, position="after_activation")
    names = [layer.name for layer in result.model.layers]
    assert names[1:6] == ["fused", "fused_bn", "apart", "relu", "apart_bn"]
    assert ops.convert_to_numpy(result.model.get_layer("apart_bn").moving_mean).min() >= 0
    np.testing.assert_array_equal(predict(result.model, images)[0], predict(model, images)[0])


def test_drop_bias_absorbs_the_bias_into_beta(images):
    model = net(bias_initializer="normal")
    kept, dropped = retrofit(model, images), retrofit(model, images, drop_bias=True)
    assert all(dropped.model.get_layer(name).bias is None for name in ("conv1", "conv2", "fc"))
    assert dropped.model.get_layer("predictions").bias is not None
    np.testing.assert_allclose(predict(dropped.model, images)[0], predict(model, images)[0], atol=1e-6)
    for name in ("conv1", "conv2", "fc"):
        a, b = (each.model.get_layer(f"{name}_bn") for each in (kept, dropped))
        # Without the bias the means are lower by it, the variances the same, up to the order of summation.
        np.testing.assert_allclose(
            b.moving_mean, np.subtract(a.moving_mean, model.get_layer(name).bias), atol=1e-5
        )
        np.testing.assert_allclose(b.moving_variance, a.moving_variance, rtol=1e-5)
        np.testing.assert_allclose(b.beta, a.moving_mean, atol=1e-5)


def test_dropout_and_l2_are_reduced(images):
    model = net(kernel_regularizer=keras.regularizers.L1L2(0.5, 0.25))
    result = retrofit(model, images, remove_dropout=True, l2_factor=0.2)
    assert "dropout" not in [layer.name for layer in result.model.layers]
    regularizer = result.model.get_layer("conv1").kernel_regularizer
    np.testing.assert_allclose([regularizer.l1, regularizer.l2], [0.5, 0.05], rtol=1e-7)
    assert list(rows(result, "removed")) == ["dropout"]
    assert rows(result, "L2 scaled")["conv1"].reason == "by 0.2: kernel_regularizer"
    assert "conv1" in rows(result)
    np.testing.assert_allclose(predict(result.model, images)[0], predict(model, images)[0], atol=1e-7)


def test_an_activity_regularizer_moves_to_the_activation(images):
    model = net(activity_regularizer=keras.regularizers.L1(0.1))
    result = retrofit(model, images).model
    assert result.get_layer("conv1").activity_regularizer is None
    losses = []
    for each in (model, result):
        each(images)
        losses.append(float(sum(each.losses)))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def test_the_inserted_layer_is_the_one_asked_for(images):
    class Special(BatchNormalization):
        pass

    arguments = {"momentum": 0.5, "epsilon": 1e-5}
    result = retrofit(net(), images, layer=Special, layer_arguments=arguments)
    layer = result.model.get_layer("conv1_bn")
    assert type(layer) is Special
    assert (layer.momentum, layer.epsilon) == (0.5, 1e-5)


def test_the_cumulative_average_goes_on_from_the_batches_seen(images):
    result = retrofit(net(), images, batch_size=8, layer_arguments={"momentum": None})
    assert set(np.asarray(result.model.get_layer("conv1_bn").batches_seen)) == {5}


def test_a_nested_model_called_twice_has_seen_every_batch_twice(images):
    """As in training, where each call updates the averages."""
    tower = keras.Sequential([keras.Input((3,)), layers.Dense(4, activation="relu", name="embed")])
    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([a, b], layers.Dense(1)(layers.Add()([tower(a), tower(b)])))
    data = [images[:, 0, 0], 1 - images[:, 1, 1]]
    (layer,) = inserted(retrofit(model, data, batch_size=8, layer_arguments={"momentum": None}).model)
    assert set(np.asarray(layer.batches_seen)) == {2 * 5}
    values = model.layers[2].layers[0].kernel
    both = np.concatenate(data).astype("float64") @ np.asarray(values, "float64")
    np.testing.assert_allclose(layer.moving_mean, both.mean(0), rtol=0, atol=1e-6)


def test_the_state_of_a_stateful_layer_stays():
    inputs = keras.Input(batch_shape=(4, 5, 3))
    x = layers.GRU(3, stateful=True, name="gru")(layers.Dense(4, activation="relu")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    data = np.random.default_rng(0).normal(size=(8, 5, 3)).astype("float32")
    model(data[:4])  # on JAX, predict_on_batch leaves the state as it is
    before = np.array(ops.convert_to_numpy(model.get_layer("gru").states[0]))
    result = retrofit(model, data, batch_size=4)
    assert result.report.difference == 0
    for each in (model, result.model):
        np.testing.assert_array_equal(ops.convert_to_numpy(each.get_layer("gru").states[0]), before)
    assert before.any()


def test_several_surgeries_in_one_process_are_no_concern_of_tensorflow(images, caplog):
    """It warns of functions that are traced anew in each call of a loop."""
    with caplog.at_level("WARNING", logger="tensorflow"):
        for _ in range(8):
            model = retrofit(net(), images[:4]).model
            keras_bn.recalibrate(model, images[:4], progress=False)
            keras_bn.fold(model)
    assert "retracing" not in caplog.text


def test_frozen_layers_get_frozen_normalizations(images):
    model = net()
    model.get_layer("conv1").trainable = False
    result = retrofit(model, images).model
    assert not result.get_layer("conv1_bn").trainable
    assert result.get_layer("conv2_bn").trainable


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        *((layers.Conv1D, 1), (layers.Conv2D, 2), (layers.Conv3D, 3)),
        *((layers.DepthwiseConv1D, 1), (layers.DepthwiseConv2D, 2)),
        *((layers.SeparableConv1D, 1), (layers.SeparableConv2D, 2)),
        *((layers.Conv1DTranspose, 1), (layers.Conv2DTranspose, 2), (layers.Conv3DTranspose, 3)),
    ],
)
def test_every_kind_of_convolution(kind, rank, data_format):
    size = (5,) * rank
    shape = (*size, 3) if data_format == "channels_last" else (3, *size)
    arguments = {"kernel_size": 2, "activation": "relu", "data_format": data_format, "name": "conv"}
    if not kind.__name__.startswith("Depthwise"):
        arguments["filters"] = 4
    model = keras.Sequential([keras.Input(shape), kind(**arguments), layers.Flatten(), layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(6, *shape)).astype("float32")
    result = retrofit(model, x)
    assert result.model.get_layer("conv_bn").axis == (-1 if data_format == "channels_last" else 1)
    np.testing.assert_allclose(predict(result.model, x)[0], predict(model, x)[0], rtol=0, atol=1e-6)
    assert rows(result)["conv"].difference == 0


def test_constant_channels(images):
    model = net()
    weights = model.get_layer("conv1").get_weights()
    model.get_layer("conv1").set_weights([0 * weights[0], weights[1] + 7.5])
    result = retrofit(model, images)
    assert not ops.convert_to_numpy(result.model.get_layer("conv1_bn").moving_variance).any()
    np.testing.assert_array_equal(predict(result.model, images)[0], predict(model, images)[0])


def test_training_mode_starts_where_inference_is(images):
    """With the calibration data as the batch, a retrofitted layer's training output is its input, nearly."""
    model = net()
    result = retrofit(model, images, remove_dropout=True).model
    x = keras.Model(model.inputs, model.get_layer("conv1").output)(images)
    out = result.get_layer("conv1_relu").output
    y = keras.Model(result.inputs, out)(images, training=True)
    # The batch's variance is the biased one: m / (m - 1) apart, with m = 40 * 64 values per channel.
    np.testing.assert_allclose(ops.convert_to_numpy(y), ops.convert_to_numpy(x), atol=1e-3)


def test_saves_loads_and_trains(images, tmp_path):
    model = net()
    model.compile("sgd", "sparse_categorical_crossentropy")
    result = retrofit(model, images).model
    result.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(loaded, images)[0], predict(model, images)[0])
    result.fit(images, np.zeros(40), verbose=0)
    assert not np.array_equal(predict(result, images)[0], predict(model, images)[0])


def test_the_check_catches_a_difference(images):
    """A layer that ignores its activation changes when the activation is split out."""

    class Stubborn(layers.Dense):
        def call(self, x):
            return keras.ops.tanh(keras.ops.matmul(x, self.kernel))

    inputs = keras.Input((4,))
    hidden = Stubborn(4, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    with pytest.raises(KerasBNError, match=r"changed by .* tolerance=1e-05"):
        retrofit(model, np.random.default_rng(0).normal(size=(8, 4)))
    assert retrofit(model, np.ones((8, 4)), tolerance=10.0).report.difference > 0


def test_check_data_is_what_the_result_is_checked_with(images):
    assert retrofit(net(), images, check_data=images[:3]).report.difference == 0
    with pytest.raises(KerasBNError, match="shape"):
        retrofit(net(), images, check_data=images[:, :4])


class Subclassed(keras.Model):
    def call(self, x):
        return x


def no_weighted_layer():
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten()])


def nan_weights():
    model = net()
    model.get_layer("conv2").bias.assign([1, np.nan, 0, 0])
    return model


def two_of_a_name():
    model = net()
    model.get_layer("conv2").name = "conv1"
    return model


def huge_weights():
    model = net()
    model.get_layer("conv1").kernel.assign(model.get_layer("conv1").kernel * 1e38)
    return model


BATCH = np.zeros((4, 8, 8, 3), "float32")


@pytest.mark.parametrize(
    ("make", "data", "options", "message"),
    [
        (net, BATCH[:0], {}, "no batch"),
        (net, iter(()), {}, "no batch"),
        (net, BATCH[:, :4], {}, r"shape \(4, 4, 8, 3\) for 'image'"),
        (net, BATCH + np.nan, {}, "NaN or infinity in 'image'"),
        (net, BATCH, {"steps": 2}, "ended after 1 of steps=2"),
        (net, None, {}, "data is a NoneType"),
        (nan_weights, BATCH, {}, "'conv2/bias'.*NaN or infinity"),
        (huge_weights, BATCH + 1e3, {}, "inputs of 'conv1_bn' are not finite"),
        (no_weighted_layer, BATCH, {}, "nothing to retrofit: no such layer"),
        (lambda: retrofit(net(), BATCH).model, BATCH, {}, "nothing to retrofit: conv1: already followed"),
        (Subclassed, BATCH, {}, "is not built"),
        (lambda: keras.Sequential([layers.Dense(2)]), BATCH, {}, "is not built"),
        (two_of_a_name, BATCH, {}, "2 layers named 'conv1'"),
        (net, BATCH, {"layers": "block*"}, r"layers='block\*' matches none .*: conv1, conv2"),
        (net, BATCH, {"layers": 3}, "layers=3: give a layer class"),
        (net, BATCH, {"position": "before"}, "position='before'.*before_activation, after_activation"),
        (net, BATCH, {"position": "after_activation", "drop_bias": True}, "not redundant"),
        (net, BATCH, {"l2_factor": -1.0}, "l2_factor=-1.0; it must be a number of at least 0"),
        (net, BATCH, {"l2_factor": "0.2"}, "l2_factor='0.2'; it must be a number"),
        (net, BATCH, {"l2_factor": None}, "l2_factor=None; it must be a number"),
        (net, BATCH, {"tolerance": -1e-3}, "tolerance=-0.001; it must be a number of at least 0"),
        (net, BATCH, {"tolerance": np.nan}, "tolerance=nan; it must be a number"),
        (net, BATCH, {"tolerance": "small"}, "tolerance='small'; it must be a number"),
        (net, BATCH, {"batch_size": 2.5}, "batch_size=2.5: it must be an integer of at least 1"),
        (net, BATCH, {"steps": "2"}, "steps='2': it must be an integer of at least 1"),
        (net, BATCH, {"layer": "BatchNormalization"}, "layer='BatchNormalization'; it must be a class"),
        (net, BATCH, {"layer": BatchNormalization()}, "layer=<.*>; it must be a class of Keras layers"),
        (net, BATCH, {"layer": dict}, "layer=<class 'dict'>; it must be a class of Keras layers"),
        (net, iter([BATCH[:0]]), {}, "There is no data"),
        (net, BATCH.astype(str), {}, "dtype <U.* for 'image'"),
        (net, BATCH, {"layer_arguments": {"axis": 1}}, "'axis', which is taken"),
        (net, BATCH, {"layer_arguments": 3}, "must be a dictionary of arguments"),
        (net, BATCH, {"layer_arguments": {"speed": 1}}, "cannot be constructed with"),
        (net, BATCH, {"layer_arguments": {"scale": False}}, "cannot be made the identity"),
        (net, BATCH, {"layer": layers.Dropout}, "cannot be constructed with"),
    ],
)
def test_bad_input_is_one_clear_error_and_changes_nothing(make, data, options, message, snapshot):
    model = make()
    before = snapshot(model) if not isinstance(model, Subclassed) and model.built else None
    with pytest.raises(KerasBNError, match=message):
        retrofit(model, data, **options)
    if before is not None:
        assert snapshot(model) == before


def test_the_report_prints_and_renders_to_json(images):
    report = retrofit(net(), images).report
    head, columns, first, *_ = str(report).splitlines()
    assert head == "retrofit: 3 retrofitted, 1 left alone; largest change of an output 0"
    assert columns.split() == ["layer", "kind", "action", "reason", "difference"]
    assert first.split()[:3] == ["conv1", "Conv2D", "retrofitted"]
    assert '"function": "retrofit"' in report.to_json()


def photographs(size, count):
    """Crops of scikit-learn's two sample photographs, prepared as VGG was trained: BGR, mean subtracted."""
    load = pytest.importorskip("sklearn.datasets").load_sample_images
    china, flower = load().images
    rng = np.random.default_rng(0)
    crops = []
    for index in range(count):
        image = (china, flower)[index % 2]
        top, left = (rng.integers(0, length - size) for length in image.shape[:2])
        crops.append(image[top : top + size, left : left + size])
    return keras.applications.vgg16.preprocess_input(np.array(crops, "float32"))


@pytest.mark.slow
def test_full_size_vgg16():
    model = keras.applications.VGG16(weights=None)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:  # biases as well, and a scale that reaches the output
            layer.bias.assign(rng.normal(0, 0.5, layer.bias.shape))
    data = photographs(224, 6)
    result = retrofit(model, data, batch_size=2)
    assert len(inserted(result.model)) == 15
    assert [row.difference for row in result.report.rows] == [0.0] * 15 + [None]
    # What the layer in front of each gives is what it returns, in the graph that predict runs.
    taps = [output for layer in inserted(result.model) for output in (layer.input, layer.output)]
    values = keras.Model(result.model.inputs, taps).predict_on_batch(data[:1])
    for before, after in zip(values[::2], values[1::2], strict=True):
        assert np.ptp(before) > 0
        np.testing.assert_array_equal(after, before)
    old, new = (each.predict(data, batch_size=2, verbose=0) for each in (model, result.model))
    assert np.ptp(old) > 0
    assert np.array_equal(old.argmax(-1), new.argmax(-1))
    np.testing.assert_allclose(new, old, rtol=0, atol=1e-5 * old.max())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["VGG19", "ConvNeXtTiny"])
def test_families_of_keras_applications_without_normalization_by_batch(family):
    options = {"weights": None, "input_shape": (32, 32, 3), "classes": 5, "classifier_activation": None}
    model = getattr(keras.applications, family)(**options)
    data = photographs(32, 8)
    result = retrofit(model, data)
    assert {row.difference for row in rows(result).values()} == {0.0}
    old, new = (each.predict_on_batch(data) for each in (model, result.model))
    np.testing.assert_allclose(new, old, rtol=0, atol=1e-5 * np.abs(old).max())


def test_the_vgg_backbone_of_keras_hub():
    hub = pytest.importorskip("keras_hub")
    model = hub.models.VGGBackbone(
        stackwise_num_repeats=[1, 2], stackwise_num_filters=[4, 8], image_shape=(32, 32, 3)
    )
    data = photographs(32, 8)
    result = retrofit(model, data)
    assert len(inserted(result.model)) == 3
    assert any("VGGBackbone" in note for note in result.report.notes)
    np.testing.assert_array_equal(result.model.predict_on_batch(data), model.predict_on_batch(data))


@pytest.mark.parametrize("options", [{}, {"drop_bias": True}, {"position": "after_activation"}])
def test_layers_of_steps_are_normalized_over_all_steps(options):
    inputs = keras.Input((3, 8, 2))
    conv = layers.Conv1D(4, 3, activation="relu", name="conv", bias_initializer="normal")
    dense = layers.Dense(5, activation="tanh", name="dense", trainable=False, bias_initializer="normal")
    x = layers.TimeDistributed(conv, name="convs")(inputs)
    x = layers.TimeDistributed(dense, name="denses")(layers.TimeDistributed(layers.Flatten())(x))
    model = keras.Model(inputs, layers.Dense(1)(layers.LSTM(2)(x)))
    data = np.random.default_rng(0).normal(size=(32, 3, 8, 2)).astype("float32")
    result = retrofit(model, data, **options)
    assert set(rows(result)) == {"convs/conv", "denses/dense"}
    values = np.concatenate([ops.convert_to_numpy(conv(data[:, step])) for step in range(3)])
    normalization = result.model.get_layer("convs_bn")
    if options == {"position": "after_activation"}:
        np.testing.assert_allclose(normalization.moving_mean, values.mean((0, 1)), rtol=1e-4, atol=1e-6)
    assert not result.model.get_layer("denses").layer.trainable
    assert result.model.get_layer("convs").layer.trainable
    for old, new in zip(predict(model, data), predict(result.model, data), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-6)


def test_a_layer_of_steps_that_is_called_twice_stays_one():
    each = layers.TimeDistributed(layers.Dense(4, activation="relu", name="dense"), name="each")
    left, right = keras.Input((3, 2), name="left"), keras.Input((3, 2), name="right")
    x = layers.Flatten()(layers.Concatenate()([each(left), each(right)]))
    model = keras.Model([left, right], layers.Dense(1)(x))
    data = [np.random.default_rng(seed).normal(size=(32, 3, 2)).astype("float32") for seed in range(2)]
    result = retrofit(model, data)
    assert set(rows(result)) == {"each/dense", "each (call 2)/dense"}
    assert len(result.model.weights) == len(model.weights) + 8
    np.testing.assert_allclose(predict(result.model, data), predict(model, data), atol=1e-6)


def test_each_call_of_a_layer_has_a_reason_of_its_own():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    once = layers.BatchNormalization(name="one")(shared(inputs))
    twice = layers.BatchNormalization(name="two")(shared(layers.ReLU()(once)))
    thrice = layers.ReLU()(shared(layers.ReLU()(twice)))
    first = layers.Dense(4, name="first")(thrice)
    model = keras.Model(inputs, layers.Dense(1)(layers.ReLU()(first)))
    result = retrofit(model, np.random.default_rng(0).normal(size=(64, 4)).astype("float32"))
    reasons = {row.layer: row.reason for row in result.report.rows}
    assert reasons["shared"] == "already followed by BatchNormalization 'one'"
    assert reasons["shared (call 2)"] == "already followed by BatchNormalization 'two'"
    assert reasons["shared (call 3)"] == "its call shared is already followed by BatchNormalization 'one'"


class TwoFaced(layers.Layer):
    """On symbolic tensors it computes something else than on numbers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4, name="inner")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) * (2.0 if isinstance(x, keras.KerasTensor) else 1.0)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


def test_a_trace_that_does_not_hold_is_given_up_also_where_a_model_takes_integers():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Flatten()(TwoFaced(name="faced")(layers.Embedding(5, 3)(tokens)))
    model = keras.Model(tokens, layers.Dense(1)(layers.Dense(4, "relu", name="hidden")(x)))
    data = np.random.default_rng(0).integers(0, 5, (32, 6))
    result = retrofit(model, data)
    reasons = {row.layer: (row.action, row.reason) for row in result.report.rows}
    assert reasons["hidden"][0] == "retrofitted"
    assert reasons["faced/inner"][0] == "left alone"
    assert "it computes something else" in reasons["faced/inner"][1]
    np.testing.assert_array_equal(predict(result.model, data), predict(model, data))
