"""Folding: the same function at inference, and nothing folded where it would not be."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn
from keras_bn.errors import KerasBNError
from keras_bn.layers.channel_affine import ChannelAffine
from keras_bn.surgery._cloning import layers_in
from keras_bn.surgery.normalizations import is_batch_normalization
from tests.surgery import applications, families, people
from tests.surgery.folding import F64, folded, kinds, outputs, scramble, sequential

L = keras.layers


def test_nested_models_are_folded_inside_and_called_as_before():
    inner = keras.Sequential(
        [
            keras.Input((6, 3), **F64),
            L.Conv1D(4, 3, name="conv", **F64),
            L.BatchNormalization(name="bn", **F64),
        ],
        name="encoder",
    )
    a, b = keras.Input((6, 3), name="a", **F64), keras.Input((6, 3), name="b", **F64)
    model = scramble(keras.Model([a, b], L.Subtract(**F64)([inner(a), inner(b)])))
    result, rows = folded(model)
    assert rows["encoder/bn"].reason == "into encoder/conv"
    assert kinds(result.get_layer("encoder")) == ["Conv1D"]


def test_a_shared_normalization_goes_with_each_of_its_calls():
    x = keras.Input((6, 3), **F64)
    bn = L.BatchNormalization(name="bn", **F64)
    a, b = bn(L.Conv1D(3, 3, name="a", **F64)(x)), bn(L.Conv1D(3, 3, name="b", **F64)(x))
    c = bn(L.ReLU(**F64)(x))
    d = bn(L.ReLU(**F64)(x))
    model = scramble(keras.Model(x, [L.ReLU(**F64)(y) for y in (a, b, c, d)]))
    result, rows = folded(model)
    assert sorted(row.action for row in rows.values()) == ["folded", "folded", "multiply-add", "multiply-add"]
    assert len({layer.name for layer in result.layers}) == len(result.layers)


def test_output_and_input_names_stay():
    x = keras.Input((5,), name="image", **F64)
    y = L.Dense(4, name="dense", **F64)(x)
    model = scramble(keras.Model(x, L.BatchNormalization(name="score", **F64)(y), name="net"))
    result, _ = folded(model)
    assert (result.name, result.inputs[0].name, result.output_names) == ("net", "image", ["score"])
    assert [layer.name for layer in result.layers] == ["image", "dense", "score"]
    assert kinds(result)[1:] == ["Dense"]


def test_a_normalization_inside_a_wrapper_becomes_a_multiply_add():
    wrapped = L.TimeDistributed(L.BatchNormalization(name="bn", **F64), name="each", **F64)
    model, rows = folded(sequential((6, 4, 3), wrapped))
    assert rows["each/bn"].action == "multiply-add"
    assert type(model.get_layer("each")) is ChannelAffine


FOLDED_OF_PEOPLE = {"wrong_config": 0, "recurrent": 0}


@pytest.mark.parametrize("make", people.MODELS, ids=lambda make: make.__name__)
def test_models_as_people_write_them(make, tmp_path):
    keras.utils.set_random_seed(0)
    model, inputs = make()
    people.scramble(model)
    expected, names = people.outputs(model, inputs), [layer.name for _, layer in layers_in(model)]
    count = sum(is_batch_normalization(layer) for _, layer in layers_in(model))
    result = keras_bn.fold(model)
    assert [layer.name for _, layer in layers_in(model)] == names
    actions = [row.action for row in result.report.rows]
    assert len(actions) == count
    assert actions.count("folded") == FOLDED_OF_PEOPLE.get(make.__name__, count)
    assert set(actions) <= {"folded", "multiply-add"}
    assert not any(is_batch_normalization(layer) for _, layer in layers_in(result.model))
    if getattr(model, "inputs", None):
        assert [t.name for t in result.model.inputs] == [t.name for t in model.inputs]
        assert getattr(result.model, "output_names", None) == getattr(model, "output_names", None)
    keras.tree.assert_same_structure(result.model(inputs), model(inputs))
    tolerance = 3e-2 if make is people.mixed_precision else 1e-5
    for old, new in zip(expected, people.outputs(result.model, inputs), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * np.abs(old).max())
    if set(actions) == {"folded"}:
        result.model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        for old, new in zip(*(people.outputs(m, inputs) for m in (result.model, loaded)), strict=True):
            np.testing.assert_array_equal(new, old)


# Where it is not all of them: added to another branch, in an encoder that asks for static shapes, never
# called, behind an addition or before an activation.
FOLDED_OF_KERAS_HUB = {"retinanet": 13, "d_fine": 14, "densenet": 4}


@pytest.mark.parametrize("family", families.on_this_backend(), ids=lambda family: family.__name__)
def test_models_of_keras_hub(family):
    pytest.importorskip("keras_hub")
    model = families.network(family)
    inputs = families.inputs_for(model)
    result = keras_bn.fold(model)
    rows = [row for row in result.report.rows if row.kind == "BatchNormalization"]
    count = sum(is_batch_normalization(layer) for _, layer in layers_in(model))
    assert len(rows) == count
    actions = [row.action for row in rows]
    assert actions.count("folded") == FOLDED_OF_KERAS_HUB.get(family.__name__, count)
    left = [row for row in rows if row.action == "left alone"]
    assert all(row.reason == "is never called" for row in left)
    assert len(left) == (3 if family is families.retinanet else 0)
    if family is not families.d_fine:  # it chooses queries by rank, which rounding may change
        for old, new in zip(*(people.outputs(m, inputs) for m in (model, result.model)), strict=True):
            np.testing.assert_allclose(new, old, rtol=0, atol=1e-4 * np.abs(old).max())


@pytest.mark.parametrize(
    "family", [families.mobilenet, families.mobilenet_v5, families.segformer], ids=lambda each: each.__name__
)
def test_folded_models_of_keras_hub_load(family, tmp_path):
    pytest.importorskip("keras_hub")
    model = families.network(family)
    folded = keras_bn.fold(model).model
    folded.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    inputs = families.inputs_for(model)
    for old, new in zip(*(people.outputs(m, inputs) for m in (folded, loaded)), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_new_optimizer_is_said_to_be_new(steps):
    model = keras.Sequential([keras.Input((3,)), L.Dense(2), L.BatchNormalization()])
    model.compile("adam", "mse")
    if steps:
        model.fit(np.ones((2 * steps, 3)), np.ones((2 * steps, 2)), batch_size=2, verbose=0)
    result = keras_bn.fold(model)
    assert int(result.model.optimizer.iterations) == 0
    said = [note for note in result.report.notes if "optimizer starts anew" in note]
    assert len(said) == (steps > 0)
    assert all(f"after {steps} steps" in note for note in said)


def test_a_model_without_normalization_is_copied():
    model = sequential((5,), L.Dense(4, **F64))
    result, rows = folded(model)
    assert not rows and result is not model


def test_the_report_gives_the_measured_difference():
    model = sequential(
        (5,), L.Dense(4, dtype="float32"), L.BatchNormalization(dtype="float32"), dtype="float32"
    )
    assert 0 <= keras_bn.fold(model).report.difference < 1e-5
    integers = keras.Sequential([keras.Input((5,), dtype="int32"), L.Embedding(9, 4), L.BatchNormalization()])
    assert keras_bn.fold(integers).report.difference is None


def test_the_result_saves_and_loads(tmp_path):
    model = sequential((5,), L.ReLU(**F64), L.BatchNormalization(name="bn", **F64), L.ReLU(**F64))
    result, _ = folded(model)
    result.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    assert isinstance(loaded.get_layer("bn"), ChannelAffine)
    x = np.ones((2, 5))
    np.testing.assert_array_equal(outputs(loaded, x), outputs(result, x))


@pytest.mark.parametrize("drop_bias", [False, True])
def test_fold_undoes_retrofit(drop_bias):
    model = sequential(
        (12, 12, 3),
        L.Conv2D(8, 3, activation="relu", name="conv", dtype="float32"),
        L.DepthwiseConv2D(3, activation="relu", name="depthwise", dtype="float32"),
        L.Flatten(dtype="float32"),
        L.Dense(16, activation="relu", name="dense", dtype="float32"),
        L.Dense(10, name="logits", dtype="float32"),
        dtype="float32",
    )
    data = np.random.default_rng(0).normal(size=(32, 12, 12, 3)).astype("float32")
    retrofitted = keras_bn.retrofit(model, data, drop_bias=drop_bias, progress=False).model
    result = keras_bn.fold(retrofitted)
    assert [row.action for row in result.report.rows] == ["folded"] * 3
    for name in ("conv", "depthwise", "dense", "logits"):
        pairs = zip(model.get_layer(name).weights, result.model.get_layer(name).weights, strict=True)
        for old, new in pairs:
            # A dropped bias comes back as a difference of beta and mean, two numbers of its size or the
            # mean's.
            atol = 1e-5 if drop_bias and old.name == "bias" else 0
            np.testing.assert_allclose(new, old, rtol=0, atol=atol, err_msg=f"{name} {old.name}")


def test_where_normalization_is_the_identity_every_weight_stays_bit_for_bit():
    """The state of a retrofitted network: gamma = sqrt(variance + epsilon), beta = mean."""
    random = np.random.default_rng(0)
    model = sequential(
        (6, 3),
        L.Conv1D(64, 3, name="conv", dtype="float32"),
        keras_bn.BatchNormalization(name="bn", dtype="float32"),
        L.ReLU(dtype="float32"),
        dtype="float32",
    )
    bn = model.get_layer("bn")
    mean = random.normal(size=64).astype("float32")
    variance = random.uniform(0.1, 9, 64).astype("float32")
    deviation = ops.sqrt(ops.convert_to_tensor(variance) + bn.epsilon)  # NumPy's may round otherwise
    bn.set_weights([ops.convert_to_numpy(deviation), mean, mean, variance])
    result = keras_bn.fold(model).model
    for old, new in zip(
        model.get_layer("conv").get_weights(), result.get_layer("conv").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, new)


class TestErrors:
    def test_a_call_in_training_mode(self):
        x = keras.Input((5,))
        model = keras.Model(x, L.BatchNormalization(name="bn")(L.Dense(4)(x), training=True))
        with pytest.raises(KerasBNError, match="'bn' is called with training=True"):
            keras_bn.fold(model)

    def test_a_nested_model_in_training_mode(self):
        inner = keras.Sequential([keras.Input((5,)), L.BatchNormalization(name="bn")], name="inner")
        x = keras.Input((5,))
        with pytest.raises(KerasBNError, match="'inner/bn' is called with training=True"):
            keras_bn.fold(keras.Model(x, inner(x, training=True)))

    def test_a_frozen_layer_is_in_inference_mode_even_so(self):
        x = keras.Input((5,), **F64)
        bn = L.BatchNormalization(name="bn", trainable=False, **F64)
        result, _ = folded(scramble(keras.Model(x, L.ReLU(**F64)(bn(L.Dense(4, **F64)(x), training=True)))))
        assert "bn" not in [layer.name for layer in result.layers]

    @pytest.mark.parametrize("index", range(4))
    def test_nan(self, index):
        model = sequential((5,), L.Dense(4), L.BatchNormalization(name="bn"), dtype="float32")
        weight = model.layers[1].weights[index]
        weight.assign(weight * np.nan)
        with pytest.raises(KerasBNError, match=rf"{weight.name} of 'bn' holds NaN"):
            keras_bn.fold(model)

    def test_no_variance_and_no_epsilon(self):
        model = sequential((5,), L.BatchNormalization(name="bn", epsilon=0.0), dtype="float32")
        model.layers[0].moving_variance.assign(np.zeros(5))
        with pytest.raises(KerasBNError, match="moving_variance of 'bn'"):
            keras_bn.fold(model)

    def test_no_variance_but_epsilon_folds(self):
        model = sequential((5,), L.Dense(4, **F64), L.BatchNormalization(name="bn", **F64))
        model.layers[1].moving_variance.assign(np.zeros(4))
        folded(model)

    @pytest.mark.parametrize("policy", ["float16", "mixed_float16"])
    def test_weights_beyond_float16(self, policy):
        model = sequential(
            (5,), L.Dense(4, name="dense", dtype=policy), L.BatchNormalization(dtype="float32")
        )
        model.layers[1].gamma.assign(np.full(4, 6e4))
        model.layers[1].moving_variance.assign(np.full(4, 1e-4))
        with pytest.raises(KerasBNError, match=r"'dense' reach .* beyond the 65504 that float16"):
            keras_bn.fold(model)

    def test_subclassed_and_not_built(self):
        with pytest.raises(KerasBNError, match="not built"):
            keras_bn.fold(people.Net())

    def test_not_built(self):
        with pytest.raises(KerasBNError, match="not built"):
            keras_bn.fold(keras.Sequential([L.Dense(4), L.BatchNormalization()]))


# How many BN layers of each family stand where nothing can take them up: behind an addition, a maximum or a
# tensor others use, and before an activation.
NOT_FOLDED_OF_APPLICATIONS = {"DenseNet121": 62, "ResNet50V2": 17}


@pytest.mark.slow
@pytest.mark.parametrize("name", applications.FAMILIES)
def test_keras_applications(name):
    model = applications.network(name)
    result = keras_bn.fold(model)
    actions = [row.action for row in result.report.rows if row.action != "absorbed"]
    left = NOT_FOLDED_OF_APPLICATIONS.get(name, 0)
    assert actions.count("multiply-add") == left
    assert actions.count("folded") == len(actions) - left > 0
    brightest = 255 if "Efficient" in name or "V3Small" in name else 1
    x = np.random.default_rng(0).uniform(0, brightest, (2, *model.input_shape[1:])).astype("float32")
    old, new = (m(x, training=False) for m in (model, result.model))
    np.testing.assert_allclose(new, old, rtol=0, atol=1e-5 * np.abs(old).max())
