"""`convert` to other layers than our BatchNormalization: what each conversion keeps, and what it refuses."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn import BatchNormalization, KerasBNError


def scramble(model):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "moving_mean"):
            weight.assign(rng.uniform(-0.3, 0.3, weight.shape))
    return model


def net(normalization=layers.BatchNormalization, **options):
    inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="conv")(inputs)
    x = layers.ReLU()(normalization(name="first", **options)(x))
    x = layers.Conv2D(12, 3, name="conv2")(x)
    x = layers.ReLU()(normalization(name="second", **options)(x))
    x = normalization(name="vector", **options)(layers.Dense(5)(layers.Flatten()(x)))
    return scramble(keras.Model(inputs, layers.Dense(3)(x), name="net"))


def images(count=40):
    return np.random.default_rng(1).normal(size=(count, 6, 6, 3)).astype("float32")


def outputs(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False)).astype("float64")


def kinds(model):
    return [type(model.get_layer(name)) for name in ("first", "second", "vector")]


def actions(result):
    return {row.layer: row.action for row in result.report.rows}


def reasons(result):
    return {row.layer: row.reason for row in result.report.rows}


@pytest.mark.parametrize(
    ("to", "kind", "expected"),
    [
        (keras_bn.BatchRenormalization, keras_bn.BatchRenormalization, {}),
        (
            keras_bn.GhostBatchNormalization(virtual_batch_size=4, momentum=0.5),
            keras_bn.GhostBatchNormalization,
            {"virtual_batch_size": 4, "momentum": 0.5, "epsilon": 1e-2},
        ),
        (
            functools.partial(keras_bn.GhostBatchNormalization, virtual_batch_size=8),
            keras_bn.GhostBatchNormalization,
            {"virtual_batch_size": 8, "momentum": 0.9},
        ),
        (BatchNormalization(momentum=None), BatchNormalization, {"momentum": None}),
        ("frozen", BatchNormalization, {"frozen_statistics": True, "momentum": 0.9}),
        (lambda layer: BatchNormalization(epsilon=layer.epsilon, name=layer.name), BatchNormalization, {}),
    ],
)
@pytest.mark.parametrize("donor", [layers.BatchNormalization, BatchNormalization])
def test_batch_normalizations_keep_the_outputs(donor, to, kind, expected, snapshot):
    model = net(donor, momentum=0.9, epsilon=1e-2)
    before = snapshot(model)
    result = keras_bn.convert(model, to=to)
    assert snapshot(model) == before
    assert kinds(result.model) == [kind] * 3
    config = result.model.get_layer("first").get_config()
    assert {name: config[name] for name in expected} == expected
    assert all("keeps the outputs" in reason for reason in reasons(result).values())
    assert all(row.difference < 2e-6 for row in result.report.rows)
    x = images()
    np.testing.assert_allclose(outputs(result.model, x), outputs(model, x), rtol=0, atol=1e-5)
    loaded = keras.models.model_from_json(result.model.to_json())
    loaded.set_weights(result.model.get_weights())
    np.testing.assert_array_equal(outputs(loaded, x), outputs(result.model, x))


def test_statistics_of_time_steps_start_from_those_of_all():
    inputs = keras.Input((6, 4))
    model = scramble(keras.Model(inputs, layers.BatchNormalization(name="bn")(inputs)))
    result = keras_bn.convert(model, to=keras_bn.SequenceBatchNormalization(max_steps=5))
    assert result.model.get_layer("bn").moving_mean.shape == (5, 4)
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    np.testing.assert_allclose(outputs(result.model, x), outputs(model, x), rtol=0, atol=1e-6)
    vectors = net()
    refused = keras_bn.convert(vectors, to=keras_bn.SequenceBatchNormalization(max_steps=5))
    assert actions(refused)["vector"] == "left alone" and "the inputs must be" in reasons(refused)["vector"]


def test_a_cumulative_average_goes_on_from_what_was_there():
    result = keras_bn.convert(net(), to=BatchNormalization(momentum=None)).model
    before = np.asarray(result.get_layer("first").moving_mean)
    result(images(), training=True)
    after = np.asarray(result.get_layer("first").moving_mean)
    assert np.abs(after - before).max() > 0
    assert np.abs(after - before).max() < np.abs(before).max()  # half of the way to the batch's


def test_there_and_back_is_the_model_itself(snapshot):
    model = net(momentum=0.9, epsilon=1e-2, scale=False)
    back = keras_bn.convert(keras_bn.convert(model).model, to="keras").model
    assert [layer.get_config() for layer in back.layers] == [layer.get_config() for layer in model.layers]
    for new, old in zip(back.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    x = images()
    np.testing.assert_array_equal(outputs(back, x), outputs(model, x))


@pytest.mark.parametrize(
    ("options", "attribute", "value"),
    [
        ({}, "unbiased_variance", False),
        ({"unbiased_variance": False, "frozen_statistics": True}, "frozen_statistics", False),
        ({"unbiased_variance": False, "momentum": None}, "momentum", 0.9),
    ],
)
def test_back_to_keras_refuses_what_would_train_otherwise(options, attribute, value):
    """The reason names what to set, and with that set it is done."""
    model = net(BatchNormalization, **options)
    result = keras_bn.convert(model, to="keras")
    assert set(actions(result).values()) == {"left alone"}
    assert attribute in reasons(result)["first"]
    for name in ("first", "second", "vector"):
        setattr(model.get_layer(name), attribute, value)
    assert kinds(keras_bn.convert(model, to="keras").model) == [layers.BatchNormalization] * 3
    ghost = keras_bn.convert(net(), to=keras_bn.GhostBatchNormalization(virtual_batch_size=2)).model
    assert "trains otherwise" in reasons(keras_bn.convert(ghost, to="keras"))["first"]


@pytest.mark.parametrize("in_place", [False, True])
def test_group_normalization_is_calibrated_to_the_moments(in_place):
    """An oracle of its own: the outputs of each layer, read from a model that ends there."""
    model, x = net(), images()
    names = ("first", "second", "vector")
    wanted = [keras.Model(model.inputs, model.get_layer(name).output).predict(x, verbose=0) for name in names]
    result = keras_bn.convert(model, to="group", data=x, in_place=in_place)
    assert (result.model is model) == in_place
    assert kinds(result.model) == [layers.GroupNormalization] * 2 + [layers.LayerNormalization]
    assert result.model.get_layer("first").groups == 8 and result.model.get_layer("second").groups == 4
    assert all("keeps the mean and deviation" in reason for reason in reasons(result).values())
    assert all(row.difference < 1e-5 for row in result.report.rows)
    for name, old in zip(names, wanted, strict=True):
        layer_model = keras.Model(result.model.inputs, result.model.get_layer(name).output)
        new = layer_model.predict(x, verbose=0)
        axes = tuple(range(new.ndim - 1))
        np.testing.assert_allclose(new.mean(axes), old.mean(axes), rtol=0, atol=1e-5)
        np.testing.assert_allclose(new.std(axes), old.std(axes), rtol=0, atol=1e-5)
        assert not np.allclose(new, old, atol=1e-2)  # moments, not outputs


def test_without_data_group_normalization_says_that_it_keeps_nothing():
    result = keras_bn.convert(net(), to="group")
    assert all(
        "keeps no outputs, and no moments without data" in reason for reason in reasons(result).values()
    )
    assert result.report.difference > 0
    result = keras_bn.convert(net(), to=layers.GroupNormalization(groups=2), data=images())
    assert kinds(result.model) == [layers.GroupNormalization] * 2 + [layers.BatchNormalization]
    assert reasons(result)["vector"].startswith("GroupNormalization does not fit")  # 5 channels


def test_a_function_chooses_layer_by_layer():
    def choose(layer):
        return layers.LayerNormalization(name=layer.name) if layer.name == "vector" else None

    result = keras_bn.convert(net(), to=choose, data=images())
    assert actions(result) == {"first": "left alone", "second": "left alone", "vector": "converted"}
    assert kinds(result.model) == [layers.BatchNormalization] * 2 + [layers.LayerNormalization]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("batch", "it must be 'keras', 'frozen', 'group'"),
        (3, "it must be"),
        (dict, "it must be"),
        (keras_bn.GhostBatchNormalization, r"needs virtual_batch_size: give an instance, to=GhostBatch"),
        (lambda layer: 3, "returned a int for 'first'; it must return a Keras layer"),
        (functools.partial(layers.GroupNormalization, group=5), "cannot be made with"),
    ],
)
def test_wrong_targets_are_refused_with_what_to_do(to, message, snapshot):
    model = net()
    before = snapshot(model)
    with pytest.raises(KerasBNError, match=message):
        keras_bn.convert(model, to=to)
    assert snapshot(model) == before


def test_training_goes_on_after_each_conversion():
    for to in ("keras", "group", "frozen", keras_bn.BatchRenormalization):
        model = keras_bn.convert(net(BatchNormalization, unbiased_variance=False), to=to).model
        model.compile("sgd", "mse")
        history = model.fit(images(), np.ones((40, 3)), epochs=3, verbose=0).history["loss"]
        assert history[-1] < history[0], to


@keras.saving.register_keras_serializable(package="targets")
class Block(layers.Layer):
    """A layer that creates its normalization in its own code."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.normalization = layers.BatchNormalization(name="bn")

    def build(self, shape):
        self.normalization.build(shape)

    def call(self, x, training=None):
        return self.normalization(x, training=training)


def test_the_way_to_load_what_a_custom_layer_would_create_again(tmp_path):
    """The advice of the note, followed."""
    inputs = keras.Input((6, 6, 4))
    donor = scramble(keras.Model(inputs, layers.Flatten()(Block(name="block")(inputs))))
    x = np.random.default_rng(0).normal(size=(20, 6, 6, 4)).astype("float32")
    assert keras_bn.convert(donor).report.notes == ()
    result = keras_bn.convert(donor, to="group", data=x)
    (note,) = result.report.notes
    assert note.startswith("block/bn: the class around them creates BN in its own code")
    result.model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras_bn.convert(donor, to="group").model
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(result.model, x))


def test_a_subclassed_model_is_measured_on_the_data():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalization = layers.BatchNormalization(name="bn")

        def call(self, x, training=None):
            return self.normalization(x, training=training)

    donor, x = Network(), np.random.default_rng(0).normal(1, 2, (20, 6, 6, 4)).astype("float32")
    donor(x)
    assert keras_bn.convert(donor, to="group").report.difference > 0  # on noise of the shape of its build
    assert keras_bn.convert(donor, to="group", data=x).report.difference > 0


def test_layer_normalization_of_channels_first():
    """Keras's own fails there on PyTorch, so the layer is left alone."""
    inputs = keras.Input((4, 6, 6))
    donor = scramble(
        keras.Model(inputs, layers.Flatten()(layers.BatchNormalization(axis=1, name="bn")(inputs)))
    )
    x = np.random.default_rng(0).normal(size=(20, 4, 6, 6)).astype("float32")
    result = keras_bn.convert(donor, to=layers.LayerNormalization, data=x)
    torch = keras.backend.backend() == "torch"
    assert actions(result) == {"bn": "left alone" if torch else "converted"}
    assert np.isfinite(outputs(result.model, x)).all()
