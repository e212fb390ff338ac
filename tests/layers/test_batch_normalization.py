"""What the layer promises beside its numbers: paths, state, weights, files, errors."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_bn import (
    AccumulatedBatchNormalization,
    BatchNormalization,
    BatchRenormalization,
    GhostBatchNormalization,
    KerasBNError,
    reference,
)


def _normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype(dtype)


def _numpy(tensor):
    return ops.convert_to_numpy(tensor)


def _filled(layer, shape):
    """The layer built, with weights that are all different."""
    if not layer.built:
        layer.build(shape)
    rng = np.random.default_rng(1)
    layer.set_weights([rng.uniform(0.5, 2.0, w.shape).astype(w.dtype) for w in layer.weights])
    return layer


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3), (2, 4, 4, 3), (2, 2, 3, 2, 3), (2, 2, 2, 2, 2, 3)])
def test_any_axis_is_the_last_one_moved(shape):
    for axis in range(1, len(shape)):
        x = _normal(*shape)
        layer = _filled(BatchNormalization(axis), shape)
        moved = np.moveaxis(x, axis, -1)
        last = BatchNormalization()
        last.build(moved.shape)
        last.set_weights(layer.get_weights())
        for training in (False, True):
            expected = np.moveaxis(_numpy(last(moved, training=training)), -1, axis)
            # Kernels of different layouts sum in different orders.
            np.testing.assert_allclose(_numpy(layer(x, training=training)), expected, atol=1e-5)
        for found, other in zip(layer.get_weights(), last.get_weights(), strict=True):
            np.testing.assert_allclose(found, other, rtol=1e-6)


def test_the_batch_axis_can_be_the_channels():
    x = _normal(4, 6)
    y = _numpy(BatchNormalization(axis=0, epsilon=1e-7)(x, training=True))
    np.testing.assert_allclose(y.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(1), 1, rtol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("axis", [-1, 1])
def test_agrees_with_keras(axis, training):
    x = _normal(4, 6, 5, 3)
    ours = _filled(BatchNormalization(axis, unbiased_variance=False), x.shape)
    theirs = layers.BatchNormalization(axis)
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    # x / deviation reaches 20 here and each of the two rounds it twice, differently.
    y, z = (_numpy(layer(x, training=training)) for layer in (ours, theirs))
    np.testing.assert_allclose(y, z, atol=4e-6)
    for found, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_inference_is_algorithm_2_and_touches_nothing():
    x = _normal(4, 5, 3)
    layer = _filled(BatchNormalization(), x.shape)
    before = layer.get_weights()
    expected = reference.inference_forward(x, *before, layer.epsilon)
    for y in (layer(x), layer(x, training=False), layer.call_inference(x)):
        np.testing.assert_allclose(_numpy(y), expected, atol=1e-5)
    for found, kept in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, kept)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("unbiased", [False, True])
def test_moving_averages_are_exponential(momentum, unbiased):
    layer = BatchNormalization(momentum=momentum, unbiased_variance=unbiased)
    mean, variance = np.zeros(3), np.ones(3)
    for seed in range(4):
        x = _normal(7, 3, seed=seed)
        layer(x, training=True)
        mean = momentum * mean + (1 - momentum) * x.mean(0)
        variance = momentum * variance + (1 - momentum) * x.var(0, ddof=int(unbiased))
    np.testing.assert_allclose(layer.get_weights()[2], mean, rtol=2e-6)
    np.testing.assert_allclose(layer.get_weights()[3], variance, rtol=2e-6)


def test_momentum_none_weighs_every_batch_the_same():
    layer = BatchNormalization(momentum=None)
    batches = [_normal(5, 3, seed=seed) for seed in range(4)]
    for x in batches:
        layer(x, training=True)
    mean, variance, seen = layer.get_weights()[2:]
    expected_mean, expected_variance = reference.population_moments(batches)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-6)
    np.testing.assert_allclose(variance, expected_variance, rtol=1e-6)
    np.testing.assert_array_equal(seen, [4, 4, 4])


def test_with_momentum_zero_inference_repeats_training():
    # The question of tensorflow#41979: only the biased variance makes the two agree.
    x = _normal(8, 3)
    layer = BatchNormalization(momentum=0.0, unbiased_variance=False)
    np.testing.assert_allclose(_numpy(layer(x, training=True)), _numpy(layer(x)), atol=1e-6)


@pytest.mark.parametrize(("attribute", "value"), [("trainable", False), ("frozen_statistics", True)])
def test_frozen_layers_use_the_population_statistics(attribute, value):
    x = _normal(8, 3)
    layer = _filled(BatchNormalization(), x.shape)
    setattr(layer, attribute, value)
    before = layer.get_weights()
    np.testing.assert_array_equal(_numpy(layer(x, training=True)), _numpy(layer(x)))
    for found, kept in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, kept)


def test_frozen_statistics_leave_gamma_and_beta_learning(training_step):
    x, dy = _normal(8, 3), _normal(8, 3, seed=1)
    layer = _filled(BatchNormalization(frozen_statistics=True), x.shape)
    gamma, _, mean, variance = layer.get_weights()
    step = training_step(layer, x, dy)
    deviation = np.sqrt(variance + layer.epsilon)
    np.testing.assert_allclose(step.dx, dy * gamma / deviation, rtol=1e-6)
    np.testing.assert_allclose(step.dweights[0], (dy * (x - mean) / deviation).sum(0), rtol=1e-5)
    np.testing.assert_allclose(step.dweights[1], dy.sum(0), rtol=1e-5)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_gamma_and_beta_are_optional(center, scale, training_step):
    x, dy = _normal(8, 3), _normal(8, 3, seed=1)
    layer = _filled(BatchNormalization(center=center, scale=scale), x.shape)
    weights = dict(zip([w.name for w in layer.weights], layer.get_weights(), strict=True))
    gamma, beta = weights.get("gamma", np.ones(3)), weights.get("beta", np.zeros(3))
    y = reference.inference_forward(
        x, gamma, beta, weights["moving_mean"], weights["moving_variance"], layer.epsilon
    )
    np.testing.assert_allclose(_numpy(layer(x)), y, atol=1e-5)
    step = training_step(layer, x, dy)
    np.testing.assert_allclose(step.y, reference.train_forward(x, gamma, beta, layer.epsilon)[0], atol=1e-5)
    gradients = reference.train_gradients(dy, x, gamma, layer.epsilon)
    np.testing.assert_allclose(step.dx, gradients.x, atol=1e-5)
    expected = [gradients.gamma] * scale + [gradients.beta] * center
    for found, other in zip(step.dweights, expected, strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_16_bit_layers_keep_statistics_in_float32(dtype):
    layer = BatchNormalization(dtype=dtype)
    x = ops.cast(_normal(64, 3) * 300, layer.compute_dtype)  # its squares overflow in float16
    y = layer(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    assert {w.dtype for w in layer.weights} == {"float32"}
    assert np.isfinite(_numpy(ops.cast(y, "float32"))).all()
    x = _numpy(ops.cast(x, "float32"))
    np.testing.assert_allclose(layer.get_weights()[3], 0.99 + 0.01 * x.var(0, ddof=1), rtol=1e-5)


def test_masked_values_have_no_influence():
    x = _normal(4, 6, 3)
    mask = np.random.default_rng(0).random((4, 6)) < 0.6
    spoilt = np.where(mask[..., None], x, np.nan)
    layer = BatchNormalization(momentum=0.0)
    y = _numpy(layer(spoilt, training=True, mask=mask.tolist()))
    expected = BatchNormalization(momentum=0.0)
    z = _numpy(expected(x[mask], training=True))
    np.testing.assert_allclose(y[mask], z, atol=1e-6)
    for found, other in zip(layer.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-6)


def test_a_mask_from_an_embedding_arrives():
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True),
            BatchNormalization(momentum=0.0),
        ]
    )
    tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]])
    model(tokens, training=True)
    vectors = model.layers[0].get_weights()[0][tokens[tokens != 0]]
    np.testing.assert_allclose(model.layers[1].get_weights()[2], vectors.mean(0), atol=1e-7)


@pytest.mark.parametrize("momentum", [0.9, None])
def test_a_batch_without_values_changes_no_statistics(momentum):
    layer = BatchNormalization(momentum=momentum)
    layer(_normal(4, 5, 3), training=True)
    before = layer.get_weights()
    y = _numpy(layer(_normal(4, 5, 3), training=True, mask=np.zeros((4, 5), bool)))
    assert np.isfinite(y).all()
    assert _numpy(layer(np.zeros((0, 5, 3), "float32"), training=True)).shape == (0, 5, 3)
    assert _numpy(layer(np.zeros((0, 5, 3), "float32"))).shape == (0, 5, 3)
    for found, kept in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, kept)


def test_one_value_per_channel_is_refused_if_the_shape_says_so():
    layer = BatchNormalization()
    with pytest.raises(KerasBNError, match=r"\(1, 1, 1, 3\) have one value per channel"):
        layer(_normal(1, 1, 1, 3), training=True)
    layer(_normal(1, 1, 1, 3))


@pytest.mark.parametrize("axis", [-1, 1])
def test_one_value_per_channel_behind_a_mask_gives_no_nan(axis):
    mask = np.zeros((2, 5), bool)
    mask[0, 0] = True
    layer = BatchNormalization(axis, momentum=0.0)
    x = np.moveaxis(_normal(2, 5, 3), -1, axis)
    y = _numpy(layer(x, training=True, mask=mask))
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(layer.get_weights()[3], np.zeros(3))


@pytest.mark.parametrize("momentum", [0.9, None])
def test_files_round_trip(momentum, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            BatchNormalization(momentum=momentum, gamma_regularizer="l2", beta_constraint="non_neg"),
        ]
    )
    model(_normal(4, 6, 6, 3), training=True)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fresh = keras.models.clone_model(model)
    fresh.load_weights(tmp_path / "model.weights.h5")
    x = _normal(2, 6, 6, 3)
    for other in (loaded, fresh):
        assert other.layers[0].get_config() == model.layers[0].get_config()
        np.testing.assert_array_equal(_numpy(other(x)), _numpy(model(x)))


@pytest.mark.parametrize(("center", "scale"), [(True, True), (False, True), (True, False)])
def test_weights_files_move_between_the_layer_and_keras(center, scale, tmp_path):
    x = _normal(4, 6, 3)
    for source, target in [
        (BatchNormalization, layers.BatchNormalization),
        (layers.BatchNormalization, BatchNormalization),
    ]:
        one, other = (
            keras.Sequential([keras.Input((6, 3)), kind(center=center, scale=scale, name="bn")])
            for kind in (source, target)
        )
        _filled(one.layers[0], x.shape)
        one.save_weights(tmp_path / "one.weights.h5")
        other.load_weights(tmp_path / "one.weights.h5")
        assert [w.name for w in one.weights] == [w.name for w in other.weights]
        for found, expected in zip(other.get_weights(), one.get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize(("center", "scale"), [(True, True), (False, True), (False, False)])
def test_the_averages_of_a_keras_file_count_as_one_batch(center, scale, suffix, tmp_path):
    ours = BatchNormalization(momentum=None, center=center, scale=scale, name="bn")
    theirs = layers.BatchNormalization(center=center, scale=scale, name="bn")
    one, other = (keras.Sequential([keras.Input((3,)), layer]) for layer in (theirs, ours))
    _filled(theirs, (4, 3))
    save = one.save if suffix == ".keras" else one.save_weights
    save(tmp_path / f"one{suffix}")
    ours(_normal(4, 3), training=True)
    ours(_normal(4, 3), training=True)
    other.load_weights(tmp_path / f"one{suffix}")
    *found, seen = ours.get_weights()
    for weight, expected in zip(found, theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    np.testing.assert_array_equal(seen, [1, 1, 1])
    x = _normal(5, 3, seed=1)
    ours(x, training=True)
    expected = (_numpy(theirs.moving_mean) + x.mean(0)) / 2
    np.testing.assert_allclose(_numpy(ours.moving_mean), expected, rtol=1e-6)


def test_keras_takes_the_weights_of_a_cumulative_average_without_the_counter(tmp_path):
    ours, theirs = BatchNormalization(momentum=None, name="bn"), layers.BatchNormalization(name="bn")
    one, other = (keras.Sequential([keras.Input((3,)), layer]) for layer in (ours, theirs))
    _filled(ours, (4, 3))
    one.save_weights(tmp_path / "one.weights.h5")
    with pytest.raises(ValueError, match="expected 4 variables, but received 5"):
        other.load_weights(tmp_path / "one.weights.h5")
    theirs.set_weights(ours.get_weights()[:-1])
    x = _normal(4, 3)
    np.testing.assert_allclose(_numpy(theirs(x)), _numpy(ours(x)), atol=4e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"center": False, "beta_initializer": "ones", "gamma_regularizer": "l1"},
        {"scale": False, "gamma_initializer": "zeros", "beta_constraint": "non_neg"},
    ],
)
def test_config_round_trip_keeps_every_argument(options):
    layer = BatchNormalization(
        axis=1,
        momentum=None,
        epsilon=0.01,
        unbiased_variance=False,
        frozen_statistics=True,
        name="bn",
        dtype="mixed_bfloat16",
        **options,
    )
    config = layer.get_config()
    assert BatchNormalization.from_config(config).get_config() == config
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert restored.get_config() == config


def test_trains_in_a_compiled_model():
    x = _normal(64, 8, 8, 3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3),
            BatchNormalization(momentum=0.5),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    history = model.fit(x, x.mean((1, 2, 3)), epochs=8, batch_size=15, verbose=0)  # the last batch has 4
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert not np.allclose(model.layers[1].get_weights()[2], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\).* 1.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\).* -0.1"),
        ({"momentum": float("nan")}, "momentum must be in"),
        ({"momentum": "0.9"}, "momentum must be in"),
        ({"epsilon": 0}, r"epsilon must be a number in \[1e-30, 1e\+30\], but it is 0"),
        ({"epsilon": 1e-50}, "epsilon must be .* 1e-50"),
        ({"epsilon": 1e50}, r"epsilon must be .* 1e\+50"),
        ({"epsilon": True}, "epsilon must be .* True"),
        ({"epsilon": -1e-3}, "epsilon must be .* -0.001"),
        ({"epsilon": float("inf")}, "epsilon must be"),
        ({"axis": 1.5}, "axis must be one integer, but it is 1.5"),
        ({"axis": [1, 2]}, "axis must be one integer"),
        ({"axis": True}, "axis must be one integer, but it is True"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(KerasBNError, match=message):
        BatchNormalization(**arguments)


FLAGS = ["center", "scale", "synchronized", "unbiased_variance", "frozen_statistics"]


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("value", ["no", 2, 0, None])
def test_flags_that_are_not_bools_are_refused(flag, value):
    with pytest.raises(KerasBNError, match=rf"{flag} must be True or False, but it is {value!r}\."):
        BatchNormalization(**{flag: value})


def test_numpy_scalars_are_taken_as_python_ones():
    layer = BatchNormalization(axis=np.int64(1), **{flag: np.bool_(False) for flag in FLAGS})
    config = layer.get_config()
    assert [type(config[name]) for name in ["axis", *FLAGS]] == [int] + [bool] * len(FLAGS)
    assert not any(config[flag] for flag in FLAGS)


@pytest.mark.parametrize(("flag", "weight"), [("center", "beta"), ("scale", "gamma")])
@pytest.mark.parametrize(("kind", "option"), [("regularizer", "l2"), ("constraint", "non_neg")])
def test_options_of_a_weight_that_is_not_there_are_refused(flag, weight, kind, option):
    argument = f"{weight}_{kind}"
    with pytest.raises(KerasBNError, match=rf"{argument} is '{option}', .* {flag}=False.* {argument} None"):
        BatchNormalization(**{flag: False, argument: option})


@pytest.mark.parametrize("axis", [3, -4])
def test_an_axis_that_the_inputs_lack_is_refused(axis):
    with pytest.raises(KerasBNError, match=rf"axis {axis} is out of range for inputs of shape \(2, 4, 3\)"):
        BatchNormalization(axis, name="bn").build((2, 4, 3))


def test_inputs_that_cannot_be_normalized_are_refused():
    with pytest.raises(KerasBNError, match="inputs are int32"):
        BatchNormalization()(np.ones((4, 3), "int32"))
    with pytest.raises(KerasBNError, match="inputs are int32"):
        BatchNormalization()(keras.Input((3,), dtype="int32"))
    with pytest.raises(KerasBNError, match="rank of 2 or more"):
        BatchNormalization()(np.ones(4, "float32"))
    with pytest.raises(KerasBNError, match="length of axis -1 must be known"):
        BatchNormalization()(keras.Input((None,)))


def test_another_number_of_channels_is_refused_and_changes_nothing():
    layer = BatchNormalization()
    layer(_normal(4, 3), training=True)
    before = layer.get_weights()
    with pytest.raises(ValueError, match=r"value 3.*shape \(4, 5\)"):
        layer(_normal(4, 5), training=True)
    with pytest.raises(KerasBNError, match=r"mask of shape \(3,\) does not fit inputs of shape \(4, 3\)"):
        layer(_normal(4, 3), training=True, mask=np.ones(3, bool))
    for found, kept in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, kept)


@pytest.mark.parametrize(
    ("argument", "value", "advice"),
    [
        ("renorm", True, "BatchRenormalization"),
        ("renorm_clipping", {"rmax": 3.0}, "BatchRenormalization, with r_max and d_max"),
        ("virtual_batch_size", 8, r"GhostBatchNormalization\(virtual_batch_size"),
        ("fused", True, "leave it out"),
        ("adjustment", abs, "scale and shift the outputs"),
    ],
)
def test_arguments_of_other_layers_are_refused_with_what_to_use(argument, value, advice):
    with pytest.raises(KerasBNError, match=rf"'bn': {argument}=.* is not an argument; .*{advice}"):
        BatchNormalization(name="bn", **{argument: value})


def test_the_config_of_keras_builds_the_layer():
    theirs = layers.BatchNormalization(axis=1, momentum=0.8, gamma_regularizer="l2", name="bn")
    ours = BatchNormalization.from_config(theirs.get_config())
    assert (ours.axis, ours.momentum, ours.name) == (1, 0.8, "bn")
    assert isinstance(ours.gamma_regularizer, keras.regularizers.L2)


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 5, 5)])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_mask_of_all_but_the_last_axis_means_what_it_means_in_keras(shape, axis):
    x = _normal(*shape)
    mask = np.random.default_rng(0).random(shape[:-1]) < 0.7
    ours, theirs = BatchNormalization(axis, unbiased_variance=False), layers.BatchNormalization(axis)
    y, z = (_numpy(layer(x, training=True, mask=mask)) for layer in (ours, theirs))
    # Keras adds 1e-7 to the counts, which are 4 and more.
    np.testing.assert_allclose(y, z, atol=2e-5)
    for found, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("axis", [1, -1])
def test_the_cumulative_average_counts_what_each_channel_has_seen(axis):
    x = _normal(6, 3, 3)
    mask = np.ones((6, 3, 3), bool)
    mask[:, 1] = False
    layer = BatchNormalization(axis, momentum=None)
    layer(x, training=True, mask=mask)
    layer(x + 1, training=True)
    moved, mask = np.moveaxis(x, axis, -1), np.moveaxis(mask, axis, -1)
    expected = [
        (moved[..., c][mask[..., c]].mean() + moved[..., c].mean() + 1) / 2
        if mask[..., c].any()
        else moved[..., c].mean() + 1
        for c in range(3)
    ]
    np.testing.assert_allclose(layer.get_weights()[2], expected, rtol=1e-5)
    seen = [2, 1, 2] if axis == 1 else [2, 2, 2]
    np.testing.assert_array_equal(layer.get_weights()[4], seen)


_VARIANTS = [
    BatchNormalization,
    partial(BatchNormalization, momentum=None),
    BatchRenormalization,
    partial(BatchRenormalization, momentum=None),
    partial(GhostBatchNormalization, 4),
    partial(AccumulatedBatchNormalization, 2),
]


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
@pytest.mark.parametrize("kind", _VARIANTS)
@pytest.mark.parametrize("trainable", [True, False])
def test_files_of_keras_load_into_every_variant(kind, suffix, trainable, tmp_path):
    theirs = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(name="bn"), layers.Dense(1)])
    theirs.set_weights([np.random.default_rng(0).uniform(1, 2, w.shape) for w in theirs.get_weights()])
    save = theirs.save if suffix == ".h5" else theirs.save_weights
    save(tmp_path / f"theirs{suffix}")
    ours = keras.Sequential([keras.Input((3,)), kind(name="bn"), layers.Dense(1)])
    for seed in range(3):
        ours(_normal(8, 3, seed=seed), training=True)
    ours.layers[0].trainable = trainable
    ours.load_weights(tmp_path / f"theirs{suffix}")
    x = _normal(4, 3)
    np.testing.assert_allclose(_numpy(ours(x)), _numpy(theirs(x)), rtol=1e-5)
    layer = ours.layers[0]
    if layer.batches_seen is not None:
        np.testing.assert_array_equal(layer.batches_seen.numpy(), np.ones(layer.batches_seen.shape))
    if isinstance(layer, AccumulatedBatchNormalization):
        np.testing.assert_array_equal(layer.accumulated_steps.numpy(), 0)


@pytest.mark.parametrize("kind", _VARIANTS)
def test_the_legacy_format_round_trips_and_counts_as_one_batch(kind, tmp_path):
    one, other = (keras.Sequential([keras.Input((3,)), kind(name="bn")]) for _ in range(2))
    for seed in range(3):
        one(_normal(8, 3, seed=seed), training=True)
    one.save(tmp_path / "one.h5")
    other.load_weights(tmp_path / "one.h5")
    x = _normal(4, 3)
    np.testing.assert_array_equal(_numpy(other(x)), _numpy(one(x)))


def test_counters_that_were_saved_as_one_number_load(tmp_path):
    layer = BatchNormalization(momentum=None)
    layer.build((4, 3))
    layer.load_own_variables({**{str(i): np.ones(3) for i in range(4)}, "4": np.int32(7)})
    np.testing.assert_array_equal(layer.batches_seen.numpy(), [7, 7, 7])
