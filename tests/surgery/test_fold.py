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

L = keras.layers
# Models in float64, so that a wrong term shows and rounding does not: 1e-12 of the scale is some 5000 ulps.
F64 = {"dtype": "float64"}
# Only on TensorFlow do all of Keras's layers compute in float64 where they are asked to.
TIGHT = 1e-12 if keras.backend.backend() == "tensorflow" else 1e-5
RANGES = {"gamma": (-2, 2), "beta": (-1, 1), "moving_mean": (-1, 1), "moving_variance": (0.2, 3)}


def scramble(model, seed=0):
    """Give every weight a value that no two channels share; gamma takes both signs."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if is_batch_normalization(layer):
            for weight in layer.weights:
                weight.assign(random.uniform(*RANGES[weight.name], weight.shape))
        elif not layer._layers:
            for weight in layer.weights:
                if keras.backend.is_float_dtype(weight.dtype):  # a dropout's seed is none
                    weight.assign(random.normal(0, 0.5, weight.shape))
    return model


def sequential(shape, *layers, dtype="float64"):
    return scramble(keras.Sequential([keras.Input(shape, dtype=dtype), *layers]))


def outputs(model, x):
    return [ops.convert_to_numpy(each) for each in keras.tree.flatten(model(x, training=False))]


def folded(model, tolerance=TIGHT, seed=1):
    """Fold, check that the outputs stay and that the donor does, and return model and rows by layer."""
    before = [array.copy() for array in model.get_weights()]
    config = model.get_config()
    result = keras_bn.fold(model)
    assert model.get_config() == config
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    random = np.random.default_rng(seed)
    x = [random.normal(size=(3, *(n or 6 for n in t.shape[1:]))).astype(t.dtype) for t in model.inputs]
    x = x if len(x) > 1 else x[0]
    for old, new in zip(outputs(model, x), outputs(result.model, x), strict=True):
        assert float(np.abs(old).max()) > 0
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * float(np.abs(old).max()))
    return result.model, {row.layer: row for row in result.report.rows}


def kinds(model):
    """The classes of the layers, but for the Identity that keeps the name of an output."""
    names = [type(layer).__name__ for layer in model.layers]
    return names[:-1] if names[-1] == "Identity" else names


LINEAR = {
    "dense": ((5,), lambda **k: L.Dense(4, **k)),
    "dense_3d": ((6, 5), lambda **k: L.Dense(4, **k)),
    "conv1d": ((7, 4), lambda **k: L.Conv1D(6, 3, **k)),
    "conv1d_dilated": ((9, 4), lambda **k: L.Conv1D(6, 3, dilation_rate=2, **k)),
    "conv2d": ((6, 7, 4), lambda **k: L.Conv2D(6, 3, **k)),
    "conv2d_strided": ((6, 7, 4), lambda **k: L.Conv2D(6, (2, 3), strides=(1, 2), **k)),
    "conv2d_grouped": ((6, 7, 4), lambda **k: L.Conv2D(6, 3, groups=2, **k)),
    "conv3d": ((4, 5, 6, 2), lambda **k: L.Conv3D(3, 2, **k)),
    "depthwise1d": ((7, 3), lambda **k: L.DepthwiseConv1D(3, depth_multiplier=2, **k)),
    "depthwise2d": ((6, 7, 3), lambda **k: L.DepthwiseConv2D(3, depth_multiplier=2, **k)),
    "separable1d": ((7, 3), lambda **k: L.SeparableConv1D(5, 3, depth_multiplier=2, **k)),
    "separable2d": ((6, 7, 3), lambda **k: L.SeparableConv2D(5, 3, depth_multiplier=2, **k)),
    "transposed1d": ((5, 3), lambda **k: L.Conv1DTranspose(4, 3, strides=2, **k)),
    "transposed2d": ((5, 4, 3), lambda **k: L.Conv2DTranspose(4, 3, strides=2, **k)),
    "transposed3d": ((3, 4, 3, 2), lambda **k: L.Conv3DTranspose(3, 2, **k)),
}


@pytest.mark.parametrize("layer_class", [L.BatchNormalization, keras_bn.BatchNormalization])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", LINEAR)
def test_goes_into_the_layer_before(name, use_bias, layer_class):
    shape, make = LINEAR[name]
    model = sequential(shape, make(name="linear", use_bias=use_bias, **F64), layer_class(name="bn", **F64))
    result, rows = folded(model)
    assert (rows["bn"].action, rows["bn"].reason) == ("folded", "into linear")
    assert result.layers[0].name == "linear" and result.layers[0].use_bias
    assert not any(is_batch_normalization(layer) for layer in result.layers)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", [name for name in LINEAR if not name.startswith("transposed")])
def test_goes_into_the_layer_after(name, use_bias):
    shape, make = LINEAR[name]
    linear = make(name="linear", use_bias=use_bias, activation="tanh", **F64)
    result, rows = folded(sequential(shape, L.BatchNormalization(name="bn", **F64), linear))
    assert rows["bn"].reason == "into linear"
    assert kinds(result) == [type(linear).__name__]


@pytest.mark.parametrize("name", [name for name in LINEAR if name.startswith("transposed")])
def test_only_the_scale_goes_into_a_transposed_convolution_after(name):
    shape, make = LINEAR[name]
    model = sequential(shape, L.BatchNormalization(name="bn", **F64), make(name="linear", **F64))
    _, rows = folded(model)
    assert rows["bn"].action == "multiply-add"
    without_offset(model.layers[0])
    _, rows = folded(model)
    assert rows["bn"].reason == "into linear"


def without_offset(layer):
    layer.beta.assign(layer.beta * 0)
    layer.moving_mean.assign(layer.moving_mean * 0)


@pytest.mark.parametrize(
    ("options", "absorbed"),
    [
        ({"kernel_size": 3, "padding": "same"}, False),
        ({"kernel_size": 1, "padding": "same"}, True),
        ({"kernel_size": 1, "padding": "same", "strides": 2}, True),
        ({"kernel_size": 2, "padding": "same", "strides": 2}, True),  # 8 = 4 windows of 2: no zero is added
        ({"kernel_size": 3, "padding": "same", "strides": 3}, False),
        ({"kernel_size": 3, "padding": "causal"}, False),
        ({"kernel_size": 1, "padding": "causal", "strides": 2}, True),
    ],
)
def test_the_offset_goes_into_the_layer_after_only_if_that_does_not_pad(options, absorbed):
    conv = L.Conv1D(3, name="conv", **options, **F64)
    model = sequential((8, 2), L.BatchNormalization(name="bn", **F64), conv)
    _, rows = folded(model)
    assert (rows["bn"].action == "folded") == absorbed
    if not absorbed:
        assert "conv pads with zeros" in rows["bn"].reason
        without_offset(model.layers[0])
        _, rows = folded(model)
        assert rows["bn"].action == "folded"


def test_padding_that_depends_on_a_length_that_is_not_known_is_assumed():
    conv = L.Conv1D(3, 2, strides=2, padding="same", name="conv", **F64)
    _, rows = folded(sequential((None, 2), L.BatchNormalization(name="bn", **F64), conv))
    assert rows["bn"].action == "multiply-add"


BETWEEN_AND_BEFORE = {
    "average_pooling": [L.AveragePooling2D(2, **F64)],
    "average_pooling_same": [L.AveragePooling2D(3, padding="same", **F64)],
    "cropping": [L.Cropping2D(1, **F64)],
    "upsampling": [L.UpSampling2D(2, **F64)],
    "upsampling_bilinear": [L.UpSampling2D(2, interpolation="bilinear", **F64)],  # TensorFlow: in float32
    "global_average": [L.GlobalAveragePooling2D(**F64)],
    "global_average_keepdims": [L.GlobalAveragePooling2D(keepdims=True, **F64)],
    "dropout": [L.Dropout(0.5, **F64), L.SpatialDropout2D(0.5, **F64), L.GaussianNoise(1.0, **F64)],
    "linear_activation": [L.Activation("linear", **F64)],
    "permute": [L.Permute((2, 1, 3), **F64)],
    "reshape": [L.Reshape((24, 4), **F64)],
    "several": [L.Dropout(0.5, **F64), L.AveragePooling2D(2, **F64), L.Reshape((6, 4), **F64)],
}


@pytest.mark.parametrize("name", BETWEEN_AND_BEFORE)
def test_passes_back_through_what_commutes_with_it(name):
    between = [type(layer).from_config(layer.get_config()) for layer in BETWEEN_AND_BEFORE[name]]
    conv = L.Conv2D(4, 3, padding="same", name="conv", **F64)
    model = sequential((6, 4, 3), conv, *between, L.BatchNormalization(name="bn", **F64))
    result, rows = folded(model, tolerance=max(1e-6, TIGHT) if "bilinear" in name else TIGHT)
    assert rows["bn"].reason == "into conv"
    assert kinds(result)[1:] == [type(layer).__name__ for layer in between]


@pytest.mark.parametrize("name", [*BETWEEN_AND_BEFORE, "flatten"])
def test_passes_on_through_what_commutes_with_it(name):
    between = [L.Flatten(**F64)] if name == "flatten" else BETWEEN_AND_BEFORE[name]
    between = [type(layer).from_config(layer.get_config()) for layer in between]
    bn, dense = L.BatchNormalization(name="bn", **F64), L.Dense(5, name="dense", **F64)
    _, rows = folded(
        sequential((6, 4, 4), bn, *between, dense), max(1e-6, TIGHT) if "bilinear" in name else TIGHT
    )
    assert rows["bn"].reason == "into dense"


def test_channels_first():
    """Depthwise alone: TensorFlow has no other convolution of channels-first inputs on a CPU."""
    first = {"data_format": "channels_first", **F64}

    def layers():
        yield L.DepthwiseConv2D(3, depth_multiplier=2, name="linear", **first)
        yield L.BatchNormalization(axis=1, name="bn", **F64)

    linear, bn = layers()
    _, rows = folded(sequential((4, 6, 7), linear, L.GlobalAveragePooling2D(**first), bn))
    assert rows["bn"].reason == "into linear"
    linear, bn = layers()
    _, rows = folded(sequential((4, 6, 7), bn, linear))
    assert rows["bn"].reason == "into linear"


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda **k: L.DepthwiseConv2D(3, depth_multiplier=2, **k), (3, 8, 8)),
        (lambda **k: L.SeparableConv2D(5, 3, **k), (4, 6, 7)),
    ],
)
@pytest.mark.parametrize("wider", [0, 1])
def test_channels_first_where_keras_adds_the_bias_along_the_last_axis(make, shape, wider):
    """Keras 3.15 does if that is as long as there are channels."""
    linear = make(data_format="channels_first", name="linear", **F64)
    shape = (*shape[:2], shape[2] + wider)
    _, rows = folded(sequential(shape, linear, L.BatchNormalization(axis=1, name="bn", **F64)))
    assert (rows["bn"].action == "folded") == bool(wider)
    assert wider or "linear may have its bias added along the last axis" in rows["bn"].reason


def test_a_flatten_that_moves_the_channels_is_not_passed():
    bn = L.BatchNormalization(axis=1, name="bn", **F64)
    flatten = L.Flatten(data_format="channels_first", name="flatten", **F64)
    _, rows = folded(sequential((4, 6, 7), bn, flatten, L.Dense(3, **F64)))
    assert "flatten moves the channels" in rows["bn"].reason


def test_masks_reach_the_layers_they_reached():
    x = keras.Input((6, 3), **F64)
    y = L.Dense(4, name="dense", **F64)(L.Masking(**F64)(x))
    y = L.BatchNormalization(name="bn", **F64)(y)
    y = L.BatchNormalization(name="kept", **F64)(L.ReLU(**F64)(y))
    model = scramble(keras.Model(x, L.GlobalAveragePooling1D(**F64)(L.ReLU(**F64)(y))))
    result, rows = folded(model)
    assert (rows["bn"].action, rows["kept"].action) == ("folded", "multiply-add")
    data = np.random.default_rng(0).normal(size=(2, 6, 3))
    data[:, 4:] = 0
    np.testing.assert_allclose(outputs(result, data), outputs(model, data), rtol=TIGHT)


def test_a_dense_layer_that_is_reshaped_into_an_image_takes_up_its_normalization():
    dense, reshape = L.Dense(3 * 2 * 4, name="dense", **F64), L.Reshape((3, 2, 4), **F64)
    _, rows = folded(sequential((5,), dense, reshape, L.BatchNormalization(name="bn", **F64)))
    assert rows["bn"].reason == "into dense"


def test_an_image_normalized_value_by_value_cannot_go_back_into_a_convolution():
    layers = L.Conv2D(4, 3, **F64), L.Flatten(**F64), L.BatchNormalization(name="bn", **F64)
    _, rows = folded(sequential((5, 5, 3), *layers))
    assert "vary along more than the channels" in rows["bn"].reason
    _, rows = folded(sequential((5, 5, 3), *layers, L.Dense(2, name="dense", **F64)))
    assert rows["bn"].reason == "into dense"


def test_only_the_scale_passes_through_zero_padding():
    model = sequential(
        (5, 5, 3),
        L.Conv2D(4, 3, name="conv", **F64),
        L.ZeroPadding2D(1, name="pad", **F64),
        L.BatchNormalization(name="bn", **F64),
    )
    _, rows = folded(model)
    assert "pad pads with zeros" in rows["bn"].reason
    without_offset(model.layers[-1])
    _, rows = folded(model)
    assert rows["bn"].reason == "into conv"


def test_a_concatenation_is_split_back_into_its_branches():
    x = keras.Input((6, 3), **F64)
    a, b = L.Conv1D(2, 3, name="a", **F64)(x), L.Conv1D(5, 3, use_bias=False, name="b", **F64)(x)
    y = L.BatchNormalization(name="bn", **F64)(L.Concatenate(**F64)([a, b]))
    _, rows = folded(scramble(keras.Model(x, L.ReLU(**F64)(y))))
    assert rows["bn"].reason == "into a, b"


def test_a_concatenation_with_a_branch_that_takes_nothing_up_changes_no_branch():
    x = keras.Input((6, 3), **F64)
    a = L.Conv1D(2, 3, padding="same", name="a", **F64)(x)
    y = L.BatchNormalization(name="bn", **F64)(L.Concatenate(**F64)([a, x]))
    model = scramble(keras.Model(x, L.ReLU(**F64)(y)))
    result, rows = folded(model)
    assert rows["bn"].action == "multiply-add"
    np.testing.assert_array_equal(result.get_layer("a").kernel, model.get_layer("a").kernel)


def test_goes_into_all_consumers_or_none():
    def build(activation):
        x = keras.Input((6, 3), **F64)
        y = L.BatchNormalization(name="bn", **F64)(x)
        a, b = L.Conv1D(2, 3, name="a", **F64)(y), L.Activation(activation, **F64)(y)
        return scramble(keras.Model(x, [a, L.Conv1D(4, 3, name="b", **F64)(b)]))

    assert folded(build("linear"))[1]["bn"].reason in ("into a, b", "into b, a")
    assert folded(build("relu"))[1]["bn"].action == "multiply-add"


def test_normalizations_in_a_row_merge():
    def bn(name):
        return L.BatchNormalization(name=name, **F64)

    result, rows = folded(sequential((6, 3), L.Conv1D(4, 3, name="conv", **F64), bn("a"), bn("b"), bn("c")))
    assert [row.reason for row in rows.values()] == ["into conv"] * 3
    result, rows = folded(sequential((6, 3), L.ReLU(**F64), bn("a"), bn("b"), L.ReLU(**F64)))
    assert kinds(result) == ["ReLU", "ChannelAffine", "ReLU"]
    assert rows["a"].reason == "into b" and rows["b"].action == "multiply-add"


def test_normalizations_of_different_axes_do_not_merge():
    bn = L.BatchNormalization
    result, _ = folded(sequential((6, 3), L.ReLU(**F64), bn(axis=1, **F64), bn(axis=2, **F64)))
    assert kinds(result) == ["ReLU", "ChannelAffine", "ChannelAffine"]


def test_a_layer_between_two_takes_up_both():
    layers = (
        L.BatchNormalization(name="a", **F64),
        L.Dense(4, name="dense", **F64),
        L.BatchNormalization(**F64),
    )
    result, _ = folded(sequential((5,), *layers))
    assert kinds(result) == ["Dense"]


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_without_gamma_or_beta(options):
    result, _ = folded(sequential((5,), L.Dense(4, **F64), L.BatchNormalization(**options, **F64)))
    assert kinds(result) == ["Dense"]


def blocked(build, x_shape=(6, 3)):
    x = keras.Input(x_shape, **F64)
    model = scramble(keras.Model(x, build(x)))
    return folded(model)[1]["bn"]


BN = {"name": "bn", **F64}
REFUSED = {
    "conv has another consumer": lambda x: (lambda y: L.Add(**F64)([L.BatchNormalization(**BN)(y), y]))(
        L.Conv1D(3, 3, name="conv", **F64)(x)
    ),
    "conv is an output": lambda x: (lambda y: [y, L.ReLU(**F64)(L.BatchNormalization(**BN)(y))])(
        L.Conv1D(3, 3, name="conv", **F64)(x)
    ),
    "conv has an activation": lambda x: L.BatchNormalization(**BN)(
        L.Conv1D(3, 3, activation="relu", name="conv", **F64)(x)
    ),
    "act (ReLU) lies between": lambda x: L.BatchNormalization(**BN)(
        L.ReLU(name="act", **F64)(L.Conv1D(3, 3, **F64)(x))
    ),
    "pool (MaxPooling1D) lies between": lambda x: L.BatchNormalization(**BN)(
        L.MaxPooling1D(2, name="pool", **F64)(L.Conv1D(3, 3, **F64)(x))
    ),
    "conv is called 2 times": lambda x: (
        lambda conv: L.Concatenate(**F64)([L.ReLU(**F64)(L.BatchNormalization(**BN)(conv(x))), conv(x)])
    )(L.Conv1D(3, 3, name="conv", **F64)),
    "drop is called with training=True": lambda x: L.BatchNormalization(**BN)(
        L.Dropout(1e-9, name="drop", **F64)(L.Conv1D(3, 3, **F64)(x), training=True)
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_is_left_as_a_multiply_add_where_folding_would_change_something(reason):
    row = blocked(REFUSED[reason])
    assert row.action == "multiply-add" and reason in row.reason


def test_a_subclass_of_a_layer_is_not_taken_for_it():
    class Doubling(L.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs) + 1

    _, rows = folded(sequential((5,), Doubling(4, **F64), L.BatchNormalization(name="bn", **F64)))
    assert rows["bn"].action == "multiply-add"


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


def each(layer, **options):
    return L.TimeDistributed(layer, name=f"each_{layer.name}", **F64, **options)


def test_what_is_done_at_every_step_is_folded_at_every_step():
    """Convolution, normalization, pooling and dense layers in TimeDistributed, one normalization outside."""
    model = sequential(
        (5, 8, 3),
        each(L.Conv1D(4, 3, name="conv", **F64)),
        each(L.BatchNormalization(name="bn", **F64)),
        each(L.AveragePooling1D(2, name="pool", **F64)),
        L.BatchNormalization(name="outside", **F64),
        each(L.ReLU(name="relu", **F64)),
        each(L.BatchNormalization(name="late", **F64)),
        each(L.Flatten(name="flat", **F64)),
        each(L.Dense(6, name="dense", use_bias=False, **F64)),
    )
    result, rows = folded(model)
    assert {path: (row.action, row.reason) for path, row in rows.items()} == {
        "each_bn/bn": ("folded", "into each_conv"),
        "outside": ("folded", "into each_conv"),
        "each_late/late": ("folded", "into each_dense"),
    }
    names = [layer.name for layer in result.layers]
    assert names == ["each_conv", "each_pool", "each_relu", "each_flat", "each_dense"]


def test_statistics_of_steps_are_not_folded_into_a_layer_of_every_step():
    model = sequential(
        (5, 4), each(L.Dense(3, name="dense", **F64)), L.BatchNormalization(axis=1, name="bn", **F64)
    )
    _, rows = folded(model)
    assert rows["bn"].action == "multiply-add" and "differ from step to step" in rows["bn"].reason


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


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.__name__)
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


def made_by_code(make):
    """A layer that holds, beside a convolution with BN, one of `make`."""

    class Made(L.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv, self.bn, self.other = L.Conv2D(4, 3, padding="same"), L.BatchNormalization(), make()

        def build(self, shape):
            self.conv.build(shape)
            self.bn.build((*shape[:-1], 4))
            if isinstance(self.other, Gate):
                self.other.build((*shape[:-1], 4))

        def call(self, x):
            return self.other(self.bn(self.conv(x)))

    return keras.Sequential([keras.Input((8, 8, 3)), Made()])


class Gate(L.Layer):
    """Its configuration has an entry that its constructor does not take."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(units, "sigmoid")

    def build(self, shape):
        self.dense.build((shape[0], shape[-1]))

    def call(self, x):
        return x * self.dense(ops.mean(x, (1, 2)))[:, None, None]

    def get_config(self):
        return {**super().get_config(), "spatial": [1, 2]}


class Tokens(Gate):
    """Also asks for the batch size, which a symbolic tensor does not know."""

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        tokens = self.dense(ops.reshape(x, (batch, -1, channels)))
        return ops.reshape(tokens, (batch, height, width, -1)) + x


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gate(4),
        lambda: Tokens(4),
        lambda: L.Activation(lambda x: keras.activations.gelu(x, approximate=False)),
        lambda: L.Lambda(lambda x: ops.tanh(x) * 2),
    ],
    ids=["gate", "tokens", "activation", "lambda"],
)
def test_what_has_no_configuration_beside_a_normalization_does_not_keep_the_result_from_loading(
    make, tmp_path
):
    model = made_by_code(make)
    scramble(model)
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype("float32")
    result = keras_bn.fold(model)
    assert [row.action for row in result.report.rows] == ["folded"]
    folded = result.model.predict_on_batch(x)
    np.testing.assert_allclose(folded, model.predict_on_batch(x), rtol=1e-5, atol=1e-5)
    result.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(x), folded)


def test_a_layer_of_the_donor_s_own_graph_stays_even_where_it_cannot_be_loaded():
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(4, 3), L.BatchNormalization(), Gate(4, name="gate")]
    )
    assert type(keras_bn.fold(model).model.get_layer("gate")) is Gate


def test_a_layer_that_has_no_configuration_and_no_graph_is_named():
    class Noisy(Gate):
        def __init__(self, units, **kwargs):
            super().__init__(units, **kwargs)
            self.seed = keras.random.SeedGenerator(0)

        def call(self, x):
            return x + keras.random.normal(ops.shape(x)[1:], seed=self.seed)

    report = keras_bn.fold(made_by_code(lambda: Noisy(4))).report
    assert [row.action for row in report.rows] == ["folded"]
    assert any("not loaded from a .keras file: Noisy" in note for note in report.notes)


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


class Raw(L.Layer):
    """Its call leaves keras.ops for NumPy, so it does not run on symbolic tensors."""

    def __init__(self, training=None, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.bn = L.Dense(3), L.BatchNormalization(name="bn")
        self.training = training

    def build(self, shape):
        self.dense.build(shape)
        self.bn.build((None, 3))

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("no symbolic tensors")
        return self.bn(self.dense(x), training=self.training)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 3)


def test_a_call_that_cannot_be_inlined_keeps_its_class():
    model = people.scramble(keras.Sequential([keras.Input((5,)), Raw(name="raw"), L.Dense(2)]))
    x = people.normal(4, 5)
    result = keras_bn.fold(model)
    (row,) = result.report.rows
    assert (row.layer, row.action) == ("raw/bn", "multiply-add")
    assert "inside raw (Raw)" in row.reason and "no symbolic tensors" in row.reason
    assert type(result.model.get_layer("raw")) is Raw
    np.testing.assert_allclose(people.outputs(result.model, x), people.outputs(model, x), rtol=0, atol=1e-6)


def test_a_normalization_in_training_mode_inside_a_layer_is_left_alone():
    model = keras.Sequential([keras.Input((5,)), Raw(training=True, name="raw"), L.Dense(2)])
    result = keras_bn.fold(people.scramble(model))
    (row,) = result.report.rows
    assert row.action == "left alone" and "training=True" in row.reason


def test_a_subclassed_model_that_cannot_be_inlined_keeps_its_class():
    class RawNet(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.bn = L.Dense(3), L.BatchNormalization(name="bn")

        def call(self, x):
            if isinstance(x, keras.KerasTensor):
                raise TypeError("no symbolic tensors")
            return self.bn(self.dense(x))

    model, x = RawNet(), people.normal(4, 5)
    model(x)
    result = keras_bn.fold(people.scramble(model))
    assert type(result.model) is RawNet
    assert [row.action for row in result.report.rows] == ["multiply-add"]
    np.testing.assert_allclose(people.outputs(result.model, x), people.outputs(model, x), rtol=0, atol=1e-6)


class Scaled(L.Layer):
    """Uses weights of its own in its call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.bn = L.Dense(3), L.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.bn.build((None, 3))
        self.factor = self.add_weight((3,), "random_normal", name="factor")

    def call(self, x):
        return keras.ops.tanh(self.bn(self.dense(x)) * self.factor)


def test_weights_of_a_layer_s_own_stay_weights(tmp_path):
    model = people.scramble(keras.Sequential([keras.Input((5,)), Scaled(), L.Dense(2)]))
    x = people.normal(4, 5)
    result = keras_bn.fold(model).model
    np.testing.assert_allclose(people.outputs(result, x), people.outputs(model, x), rtol=0, atol=1e-6)
    assert sum(w.shape == (3,) for w in result.trainable_weights) == 2  # a bias and the factor
    result.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(people.outputs(loaded, x), people.outputs(result, x))


class Noisy(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bn, self.seed = L.BatchNormalization(), keras.random.SeedGenerator(1)

    def build(self, shape):
        self.bn.build(shape)

    def call(self, x):
        return self.bn(x) + 0.0 * keras.random.normal((1, 5), seed=self.seed)


def test_random_numbers_are_not_frozen():
    model = people.scramble(keras.Sequential([keras.Input((5,)), Noisy(name="noisy")]))
    (row,) = keras_bn.fold(model).report.rows
    assert row.action == "multiply-add" and "random" in row.reason


class Special(L.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


def test_a_subclass_that_computes_something_else_is_left_alone():
    model = people.scramble(keras.Sequential([keras.Input((5,)), L.Dense(3), Special(name="special")]))
    x = people.normal(4, 5)
    result = keras_bn.fold(model)
    assert result.report.rows[0].action == "left alone"
    np.testing.assert_allclose(people.outputs(result.model, x), people.outputs(model, x), rtol=0, atol=1e-6)


def test_a_normalization_that_is_never_called_is_said_to_be():
    class Block(L.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.a, self.b = L.BatchNormalization(name="a"), L.BatchNormalization(name="b")

        def build(self, shape):
            self.a.build(shape)
            self.b.build(shape)

        def call(self, x):
            return self.a(x)

    model = keras.Sequential([keras.Input((4,)), Block(name="block"), L.Dense(2)])
    rows = {row.layer: row for row in keras_bn.fold(model).report.rows}
    assert rows["block/a"].action == "folded"
    assert (rows["block/b"].action, rows["block/b"].reason) == ("left alone", "is never called")


def adapted(what):
    model = keras.Sequential(
        [keras.Input((6,)), L.Dense(8, name="d"), L.BatchNormalization(name="bn"), L.ReLU()]
    )
    model.add(L.Dense(3))
    if what == "int8":
        model.quantize("int8")
    else:
        model.get_layer("d").enable_lora(2)
        model.get_layer("d").lora_kernel_b.assign(keras.random.normal((2, 8), seed=1))
    return people.scramble(model)


@pytest.mark.parametrize("what", ["LoRA", "int8"])
def test_what_keeps_a_layer_from_taking_up_normalization_is_named(what):
    (row,) = keras_bn.fold(adapted(what)).report.rows
    assert row.action == "multiply-add"
    assert f"before it, d {'has LoRA' if what == 'LoRA' else 'is quantized to int8'}" in row.reason


def test_lora_that_has_not_been_trained_yet_is_kept_for_training():
    model = keras.Sequential([keras.Input((6,)), L.Dense(8, name="d"), L.BatchNormalization()])
    model.get_layer("d").enable_lora(2)
    (row,) = keras_bn.fold(model).report.rows
    assert "d has LoRA weights that are not merged" in row.reason


def test_lora_folds_once_it_is_merged(tmp_path):
    """As the reason advises: saving merges it."""
    model, x = adapted("LoRA"), people.normal(4, 6)
    model.save(tmp_path / "model.keras")
    result = keras_bn.fold(keras.models.load_model(tmp_path / "model.keras"))
    assert result.report.rows[0].action == "folded"
    assert not result.model.get_layer("d").lora_enabled
    np.testing.assert_allclose(people.outputs(result.model, x), people.outputs(model, x), rtol=0, atol=1e-6)


PADDINGS = [
    ("ZeroPadding1D", 1, L.Conv1D, (9, 3), {"kernel_size": 3}),
    ("ZeroPadding2D", ((0, 1), (0, 1)), L.DepthwiseConv2D, (8, 8, 3), {"kernel_size": 3, "strides": 2}),
    ("ZeroPadding2D", 1, L.Conv2D, (7, 6, 3), {"kernel_size": 3}),
    ("ZeroPadding2D", 2, L.Conv2D, (7, 6, 3), {"kernel_size": 3, "dilation_rate": 2}),
    ("ZeroPadding3D", 1, L.Conv3D, (5, 5, 5, 2), {"kernel_size": 3}),
]


@pytest.mark.parametrize(("kind", "padding", "conv", "shape", "options"), PADDINGS)
def test_padding_goes_into_the_convolution(kind, padding, conv, shape, options):
    if conv is not L.DepthwiseConv2D:
        options = options | {"filters": 4}
    stack = [keras.Input(shape), getattr(L, kind)(padding, name="pad"), conv(name="conv", **options)]
    model = keras.Sequential([*stack, L.BatchNormalization(name="bn")])
    x = people.normal(2, *shape)
    unfolded = keras.Sequential([keras.Input(shape), *model.layers[:2]])
    result = keras_bn.fold(unfolded)
    assert [(row.layer, row.action) for row in result.report.rows] == [("pad", "absorbed")]
    np.testing.assert_array_equal(people.outputs(result.model, x), people.outputs(unfolded, x))
    both = keras_bn.fold(people.scramble(model))
    assert {row.action for row in both.report.rows} == {"absorbed", "folded"}
    assert [layer.name for layer in both.model.layers] == ["conv", "bn"]
    np.testing.assert_allclose(people.outputs(both.model, x), people.outputs(model, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("padding", "shape", "options"),
    [
        (((1, 0), (1, 0)), (8, 8, 3), {"strides": 2}),  # "same" pads at the end
        (1, (8, 8, 3), {"strides": 2}),
        (1, (None, None, 3), {"strides": 2}),
        (1, (7, 7, 3), {"padding": "same"}),
        (2, (7, 7, 3), {}),
    ],
)
def test_other_padding_stays(padding, shape, options):
    stack = [keras.Input(shape), L.ZeroPadding2D(padding), L.Conv2D(4, 3, **options)]
    assert not keras_bn.fold(keras.Sequential(stack)).report.rows


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
    bn.set_weights([np.sqrt(variance + np.float32(bn.epsilon)), mean, mean, variance])
    result = keras_bn.fold(model).model
    for old, new in zip(
        model.get_layer("conv").get_weights(), result.get_layer("conv").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_low_precision(policy):
    model = sequential(
        (6, 3),
        L.Conv1D(4, 3, dtype=policy),
        L.BatchNormalization(dtype=policy),
        L.ReLU(dtype=policy),
        L.BatchNormalization(dtype=policy),
        dtype="float32",
    )
    # Folding moves a rounding to 8 or 11 bits from the activations into the weights: a few of its steps.
    result, _ = folded(model, tolerance=2e-2 if "bfloat16" in policy else 2e-3)
    assert kinds(result) == ["Conv1D", "ReLU", "ChannelAffine"]
    assert result.layers[0].dtype_policy.name == policy


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


class Gated(L.Layer):
    """Does something else without its second input."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.bn = L.Dense(4), L.BatchNormalization(name="bn")

    def call(self, x, gate=None):
        y = self.bn(self.dense(x))
        return y if gate is None else y * gate


def test_a_layer_with_an_optional_input_keeps_its_code():
    x, gate = keras.Input((3,), name="x"), keras.Input((4,), name="gate", optional=True)
    model = scramble(keras.Model({"x": x, "gate": gate}, L.Dense(2)(Gated(name="gated")(x, gate))))
    result = keras_bn.fold(model)
    (row,) = result.report.rows
    assert row.action == "multiply-add" and "optional input" in row.reason
    data = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    for gates in (None, np.full((5, 4), 2.0, "float32")):
        inputs = {"x": data, "gate": gates}
        np.testing.assert_allclose(result.model(inputs), model(inputs), rtol=1e-5, atol=1e-6)


class Conditional(L.Layer):
    """Branches that use a tensor from around them, of which Keras makes no graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.bn = L.Dense(4), L.BatchNormalization(name="bn")

    def call(self, x):
        y = self.bn(self.dense(x))
        return keras.ops.cond(keras.ops.sum(y) > 0, lambda: y, lambda: y * 2.0)


def test_operations_that_are_no_graph_stay_in_their_layer():
    model = scramble(keras.Sequential([keras.Input((3,)), Conditional(name="either"), L.Dense(2)]))
    result = keras_bn.fold(model)
    (row,) = result.report.rows
    assert row.action == "multiply-add" and "are no graph" in row.reason
    data = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    np.testing.assert_allclose(result.model(data), model(data), rtol=1e-5, atol=1e-6)
    frozen = keras_bn.freeze(model)
    assert [row.action for row in frozen.report.rows] == ["frozen"]
    np.testing.assert_allclose(frozen.model(data), model(data), rtol=1e-5, atol=1e-6)
