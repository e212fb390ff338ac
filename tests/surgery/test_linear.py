"""Convolutions and dense layers that take up a normalization, and what keeps them from it."""

import keras
import numpy as np
import pytest

import keras_bn
from keras_bn.surgery.normalizations import is_batch_normalization
from tests.surgery import people
from tests.surgery.folding import F64, folded, kinds, sequential, without_offset

L = keras.layers
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


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_without_gamma_or_beta(options):
    result, _ = folded(sequential((5,), L.Dense(4, **F64), L.BatchNormalization(**options, **F64)))
    assert kinds(result) == ["Dense"]


def test_a_subclass_of_a_layer_is_not_taken_for_it():
    class Doubling(L.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs) + 1

    _, rows = folded(sequential((5,), Doubling(4, **F64), L.BatchNormalization(name="bn", **F64)))
    assert rows["bn"].action == "multiply-add"


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
