"""The way from a normalization to the layer that takes it up: what lies between, branches, steps."""

import keras
import numpy as np
import pytest

from tests.surgery.folding import F64, TIGHT, folded, kinds, outputs, scramble, sequential, without_offset

L = keras.layers
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
