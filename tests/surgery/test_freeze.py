"""Freezing joins BN with the layer before it: the same function and training, and a way back to the bit."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bn
from keras_bn import BatchNormalization, FrozenBatchNormalization, JoinedBatchNormalization, KerasBNError
from keras_bn.surgery.graph import calls
from tests.surgery import applications, families, people

BACKEND = keras.backend.backend()

# Keras's options of each kind of layer that can be joined, and the inputs it takes.
KINDS = {
    "dense": (lambda **o: layers.Dense(6, **o), (5,)),
    "dense of sequences": (lambda **o: layers.Dense(6, **o), (4, 5)),
    "conv1d causal": (lambda **o: layers.Conv1D(6, 3, padding="causal", **o), (7, 4)),
    "conv2d": (lambda **o: layers.Conv2D(6, 3, strides=2, padding="same", **o), (7, 6, 4)),
    "conv2d groups": (lambda **o: layers.Conv2D(6, 3, groups=2, **o), (5, 5, 4)),
    "conv2d dilated": (lambda **o: layers.Conv2D(6, 3, dilation_rate=2, **o), (7, 6, 4)),
    "conv3d": (lambda **o: layers.Conv3D(6, 2, **o), (3, 4, 3, 4)),
    "conv1d transpose": (lambda **o: layers.Conv1DTranspose(6, 3, strides=2, **o), (5, 4)),
    "conv2d transpose": (lambda **o: layers.Conv2DTranspose(6, 3, padding="same", **o), (5, 4, 4)),
    "depthwise1d": (lambda **o: layers.DepthwiseConv1D(3, depth_multiplier=2, **o), (7, 3)),
    "depthwise2d": (lambda **o: layers.DepthwiseConv2D(3, depth_multiplier=2, **o), (6, 5, 3)),
    "separable1d": (lambda **o: layers.SeparableConv1D(6, 3, **o), (7, 4)),
    # With more weights than outputs.
    "wide dense": (lambda **o: layers.Dense(6, **o), (200,)),
    "conv2d of few positions": (lambda **o: layers.Conv2D(6, 3, **o), (4, 3, 16)),
    "separable2d": (lambda **o: layers.SeparableConv2D(6, 3, padding="same", **o), (6, 5, 4)),
}


def scramble(model):
    """Weights of BN, and biases, that no two channels share."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "moving_mean", "bias"):
            weight.assign(rng.uniform(-0.3, 0.3, weight.shape))
    return model


def pair(kind, normalization, dtype="float32", **options):
    """A layer, BN behind it, and something behind that."""
    make, shape = KINDS[kind]
    inputs = keras.Input(shape, dtype=keras.DTypePolicy(dtype).variable_dtype, name="inputs")
    x = make(dtype=dtype, name="linear", **options)(inputs)
    x = layers.Activation("tanh", dtype=dtype)(normalization(dtype=dtype, name="bn")(x))
    x = layers.Dense(2, dtype=dtype, name="out")(layers.Flatten(dtype=dtype)(x))
    return scramble(keras.Model(inputs, x, name="pair"))


def net(normalization=layers.BatchNormalization):
    """Two that can be joined, one behind an activation, one without a layer before it."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = normalization(name="first")(inputs)
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(normalization(name="bn", scale=False)(x))
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = normalization(name="late")(x)
    x = layers.Dense(5, name="fc")(layers.Flatten(name="flatten")(x))
    x = normalization(name="fc_bn", center=False)(x)
    return scramble(keras.Model(inputs, layers.Dense(3, name="out")(x), name="net"))


def reference(build, donor, **options):
    """The same network with `frozen_statistics=True` instead: what freezing must equal."""

    def normalization(**arguments):
        return BatchNormalization(frozen_statistics=True, **arguments)

    result = build(normalization, **options)
    result.set_weights(donor.get_weights())
    return result


def outcome(result):
    return {row.layer: (row.action, row.reason) for row in result.report.rows}


def normal(*shape, dtype="float32"):
    return np.random.default_rng(1).normal(size=shape).astype(dtype)


def outputs(model, x):
    return keras.ops.convert_to_numpy(keras.ops.cast(model(x, training=False), "float64"))


def trained(model, x, steps=3, rate=0.1):
    """Plain gradient descent, so that the change of the weights is the gradient."""
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=False)
    y = np.random.default_rng(2).normal(size=(len(x), model.output_shape[-1]))
    model.fit(x, y, batch_size=len(x), epochs=steps, verbose=0)
    return model


def by_path(model):
    """Weights by the names of their layer and their own, without the joined layer's in front."""
    return {
        "/".join(weight.path.split("/")[-2:]): keras.ops.convert_to_numpy(weight) for weight in model.weights
    }


def close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize(
    ("kind", "bias"),
    [(kind, True) for kind in KINDS]
    + [(kind, False) for kind in ("dense", "conv2d", "conv2d transpose", "depthwise2d", "separable2d")],
)
def test_function_and_training_are_those_of_frozen_statistics(kind, bias):
    # float64 where the backend has it (JAX has not, Keras's Dense and BN on PyTorch compute in float32).
    dtype, tolerance = ("float64", 1e-12) if BACKEND == "tensorflow" else ("float32", 2e-6)
    donor = pair(kind, layers.BatchNormalization, dtype, use_bias=bias)
    expected = reference(lambda bn, **o: pair(kind, bn, dtype, **o), donor, use_bias=bias)
    result = keras_bn.freeze(donor)
    assert outcome(result) == {"bn": ("joined", "with linear")}
    x = normal(8, *KINDS[kind][1], dtype=dtype)
    close(outputs(result.model, x), outputs(expected, x), tolerance)
    new, old = by_path(trained(result.model, x)), by_path(trained(expected, x))
    assert new.keys() == old.keys()
    for path, value in old.items():
        close(new[path], value, tolerance * 10)
    for path, value in by_path(donor).items():  # it did train, but not the statistics
        assert np.array_equal(new[path], value) == ("moving" in path), path


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_it_is_as_near_to_the_exact_function_as_two_layers_are(dtype):
    """Against float64 in NumPy: joined they round no worse than one after another."""
    donor = pair("dense", layers.BatchNormalization, dtype)
    joined = keras_bn.freeze(donor).model.get_layer("bn")
    x = normal(200, 5, dtype="float16").astype("float32")
    kernel, bias, gamma, beta, mean, variance = (w.astype("float64") for w in joined.get_weights())
    exact = (x.astype("float64") @ kernel + bias - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    together = keras.ops.convert_to_numpy(keras.ops.cast(joined(x), "float64"))
    apart = donor.get_layer("bn")(donor.get_layer("linear")(x), training=False)
    apart = keras.ops.convert_to_numpy(keras.ops.cast(apart, "float64"))
    assert keras.backend.standardize_dtype(joined(x).dtype) == joined.compute_dtype
    assert np.abs(together - exact).max() <= 1.5 * np.abs(apart - exact).max()


def test_every_batch_normalization_is_frozen_and_says_how(snapshot):
    donor = net()
    before = snapshot(donor)
    result = keras_bn.freeze(donor)
    assert snapshot(donor) == before
    assert outcome(result) == {
        "first": ("frozen", "not joined: no layer comes before it"),
        "bn": ("joined", "with conv"),
        "late": ("frozen", "not joined: depthwise before it has an activation"),
        "fc_bn": ("joined", "with fc"),
    }
    assert 0 <= result.report.difference < 1e-5
    normalizations = [layer for layer in result.model.layers if hasattr(layer, "frozen_statistics")]
    assert len(normalizations) == 4 and all(layer.frozen_statistics for layer in normalizations)
    x = normal(8, 8, 8, 3)
    expected = reference(net, donor)
    close(outputs(result.model, x), outputs(expected, x), 2e-6)
    new, old = by_path(trained(result.model, x)), by_path(trained(expected, x))
    for path, value in old.items():
        close(new[path], value, 5e-5)  # three steps of float32, in which the rounding grows


def test_freezing_and_unfreezing_gives_the_model_back_to_the_bit(snapshot):
    donor = net()
    donor.compile(keras.optimizers.Adam(0.125), "mse")
    frozen = keras_bn.freeze(donor).model
    back = keras_bn.unfreeze(frozen)
    assert snapshot(back.model) == snapshot(donor)
    assert back.model.get_config() == donor.get_config()
    assert back.model.optimizer.get_config() == donor.optimizer.get_config()
    assert {row.action for row in back.report.rows} == {"unfrozen"}
    assert {type(layer) for layer in back.model.layers} == {type(layer) for layer in donor.layers}


def test_unfreezing_after_training_gives_the_trained_function():
    donor = net()
    x = normal(16, 8, 8, 3)
    frozen = trained(keras_bn.freeze(donor).model, x)
    back = keras_bn.unfreeze(frozen).model
    close(outputs(back, x), outputs(frozen, x), 2e-6)
    assert np.abs(outputs(back, x) - outputs(donor, x)).max() > 1e-3  # training had an effect
    statistics = {p: w for p, w in by_path(back).items() if "moving" in p}
    for path, value in statistics.items():
        np.testing.assert_array_equal(value, by_path(donor)[path])


@pytest.mark.parametrize("whole", [True, False])
def test_saved_and_loaded_it_is_the_same_and_can_still_be_unfrozen(whole, tmp_path):
    donor = net()
    x = normal(8, 8, 8, 3)
    frozen = trained(keras_bn.freeze(donor).model, x)
    if whole:
        frozen.save(tmp_path / "frozen.keras")
        loaded = keras.models.load_model(tmp_path / "frozen.keras")
    else:
        frozen.save_weights(tmp_path / "frozen.weights.h5")
        loaded = keras_bn.freeze(donor).model
        loaded.load_weights(tmp_path / "frozen.weights.h5")
    np.testing.assert_array_equal(outputs(loaded, x), outputs(frozen, x))
    back, expected = keras_bn.unfreeze(loaded).model, keras_bn.unfreeze(frozen).model
    for new, old in zip(back.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_layers_selects():
    result = keras_bn.freeze(net(), layers="fc*")
    actions = {layer: action for layer, (action, _) in outcome(result).items()}
    assert actions == {"first": "left alone", "bn": "left alone", "late": "left alone", "fc_bn": "joined"}
    assert type(result.model.get_layer("bn")) is layers.BatchNormalization
    with pytest.raises(KerasBNError, match="matches none"):
        keras_bn.freeze(net(), layers="nothing")


def test_flags_survive_both_ways():
    donor = net()
    donor.get_layer("conv").trainable = False
    donor.get_layer("fc_bn").trainable = False
    donor.get_layer("late").trainable = False
    frozen = keras_bn.freeze(donor).model
    trainable = {path for path in by_path(donor)} - {
        "/".join(weight.path.split("/")[-2:]) for weight in frozen.non_trainable_weights
    }
    assert trainable == {"/".join(weight.path.split("/")[-2:]) for weight in donor.trainable_weights}
    back = keras_bn.unfreeze(frozen).model
    assert [layer.trainable for layer in back.layers] == [layer.trainable for layer in donor.layers]


def test_nested_models_and_shared_layers():
    tower = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, name="d"), layers.BatchNormalization(name="n")], name="tower"
    )
    shared, normalization = layers.Dense(4, name="shared"), layers.BatchNormalization(name="shared_bn")
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    x = [normalization(shared(tower(side))) for side in (left, right)]
    donor = scramble(keras.Model([left, right], layers.Subtract(name="minus")(x)))
    result = keras_bn.freeze(donor)
    assert outcome(result) == {"tower/n": ("joined", "with d"), "shared_bn": ("joined", "with shared")}
    assert len(result.model.weights) == len(donor.weights)
    data = [normal(4, 6), 2 * normal(4, 6)]
    close(outputs(result.model, data), outputs(donor, data), 2e-6)
    back = keras_bn.unfreeze(result.model).model
    np.testing.assert_array_equal(outputs(back, data), outputs(donor, data))


def test_a_layer_that_is_also_called_elsewhere_is_not_joined():
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="bn")(shared(shared(inputs)))
    result = keras_bn.freeze(keras.Model(inputs, x))
    assert outcome(result) == {
        "bn": ("frozen", "not joined: it or shared before it is also called elsewhere")
    }


def with_other_weights(method, argument):
    """A dense layer after a method of it that gives it other weights than a kernel and a bias."""
    layer = layers.Dense(4, name="d")
    layer.build((None, 3, 4))
    getattr(layer, method)(argument)
    return layer


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda x: layers.BatchNormalization(name="bn")(layers.ReLU(name="r")(x)), "r before it is no plain"),
        (
            lambda x: layers.BatchNormalization(name="bn")(
                layers.Dense(4, activity_regularizer="l2", name="d")(x)
            ),
            "d before it has an activity regularizer",
        ),
        (
            lambda x: layers.BatchNormalization(axis=1, name="bn")(layers.Dense(4, name="d")(x)),
            "it normalizes another axis than the channels of d",
        ),
        (
            lambda x: layers.Add()(
                [y := layers.Dense(4, name="d")(x), layers.BatchNormalization(name="bn")(y)]
            ),
            "d before it has another consumer",
        ),
        (
            lambda x: layers.BatchNormalization(name="bn")(with_other_weights("quantize", "int8")(x)),
            "d before it is quantized to int8",
        ),
        (
            lambda x: layers.BatchNormalization(name="bn")(with_other_weights("enable_lora", 2)(x)),
            "d before it has LoRA weights",
        ),
    ],
)
def test_what_cannot_be_joined_is_frozen_with_the_reason(build, reason):
    inputs = keras.Input((3, 4))
    donor = scramble(keras.Model(inputs, build(inputs)))
    result = keras_bn.freeze(donor)
    action, said = outcome(result)["bn"]
    assert action == "frozen" and said.startswith(f"not joined: {reason}")
    frozen = result.model.get_layer("bn")
    assert isinstance(frozen, FrozenBatchNormalization) and frozen.frozen_statistics
    x = normal(5, 3, 4)
    close(outputs(result.model, x), outputs(donor, x), 1e-6)


def test_training_mode_and_frozen_layers_are_left_alone():
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="batch")(layers.Dense(4, name="d")(inputs), training=True)
    x = layers.ReLU()(x)
    x = BatchNormalization(name="already", frozen_statistics=True)(x)
    donor = scramble(keras.Model(inputs, layers.BatchNormalization(name="bn")(layers.Dense(2)(x))))
    result = keras_bn.freeze(donor)
    assert outcome(result)["batch"] == (
        "left alone",
        "is called with training=True, so model(x) normalizes by the batch",
    )
    assert outcome(result)["already"] == ("left alone", "its statistics are frozen already")
    x = normal(5, 4)
    close(outputs(result.model, x), outputs(donor, x), 1e-6)
    assert outcome(keras_bn.freeze(result.model))["bn/bn"][0] == "left alone"
    back = keras_bn.unfreeze(result.model).model
    assert back.get_layer("already").frozen_statistics
    assert [layer.get_config() for layer in back.layers] == [layer.get_config() for layer in donor.layers]


def test_the_arguments_of_a_call_come_back():
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="bn")(layers.Dense(4, name="d")(inputs), training=False)
    donor = scramble(keras.Model(inputs, x))
    back = keras_bn.unfreeze(keras_bn.freeze(donor).model).model
    assert calls(back)[-1].kwargs == {"training": False}


def test_variants_keep_their_class_and_their_state():
    inputs = keras.Input((6, 4))
    x = keras_bn.SequenceBatchNormalization(max_steps=5, name="sequence")(inputs)
    x = keras_bn.BatchRenormalization(name="renorm")(layers.ReLU()(x))
    x = keras_bn.GhostBatchNormalization(virtual_batch_size=2, name="ghost")(layers.Dense(4, name="d")(x))
    donor = scramble(keras.Model(inputs, x))
    donor(normal(4, 6, 4), training=True)
    result = keras_bn.freeze(donor)
    assert {name: action for name, (action, _) in outcome(result).items()} == {
        "sequence": "frozen",
        "renorm": "frozen",
        "ghost": "joined",
    }
    x = normal(3, 6, 4)
    close(outputs(result.model, x), outputs(donor, x), 1e-6)
    frozen_in_training = keras.ops.convert_to_numpy(result.model(x, training=True))
    close(frozen_in_training, outputs(donor, x), 1e-6)
    back = keras_bn.unfreeze(result.model).model
    assert back.get_config() == donor.get_config()
    for new, old in zip(back.get_weights(), donor.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_the_renorm_of_keras_trains_on_from_the_statistics():
    inputs = keras.Input((4,))
    donor = scramble(keras.Model(inputs, layers.BatchNormalization(renorm=True, name="bn")(inputs)))
    back = keras_bn.unfreeze(keras_bn.freeze(donor).model).model.get_layer("bn")
    assert back.get_config() == donor.get_layer("bn").get_config()
    np.testing.assert_array_equal(np.asarray(back.renorm_mean), np.asarray(back.moving_mean))
    np.testing.assert_allclose(
        np.asarray(back.renorm_stddev) ** 2, np.asarray(back.moving_variance) + 1e-3, 1e-5
    )


def test_wrapped_layers_are_frozen_in_place():
    inputs = keras.Input((3, 4))
    donor = scramble(
        keras.Model(inputs, layers.TimeDistributed(layers.BatchNormalization(name="bn"), name="w")(inputs))
    )
    result = keras_bn.freeze(donor)
    assert outcome(result) == {"w/bn": ("frozen", "not joined: no layer comes before it")}
    x = normal(5, 3, 4)
    close(keras.ops.convert_to_numpy(result.model(x, training=True)), outputs(donor, x), 1e-6)
    back = keras_bn.unfreeze(result.model).model
    assert back.get_config() == donor.get_config()
    np.testing.assert_array_equal(outputs(back, x), outputs(donor, x))


def test_regularizers_and_constraints_act_on_the_weights_themselves():
    options = {
        "kernel_regularizer": keras.regularizers.L2(0.5),
        "kernel_constraint": keras.constraints.MaxNorm(0.1),
    }
    donor = pair("dense", layers.BatchNormalization, **options)
    frozen = keras_bn.freeze(donor).model
    losses = [float(keras.ops.convert_to_numpy(sum(model.losses))) for model in (frozen, donor)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    kernel = by_path(trained(frozen, normal(8, 5)))["linear/kernel"]
    assert np.linalg.norm(kernel, axis=0).max() <= 0.1 + 1e-6


def test_errors_say_what_to_do():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(KerasBNError, match="has no batch normalization layer"):
        keras_bn.freeze(model)
    with pytest.raises(KerasBNError, match=r"pass one that keras_bn\.freeze made"):
        keras_bn.unfreeze(model)


@pytest.mark.parametrize(
    "family",
    [
        "ResNet50",
        pytest.param(
            "MobileNetV2",
            marks=pytest.mark.skipif(BACKEND == "jax", reason="JAX compiles it for half a minute"),
        ),
    ],
)
def test_networks_of_keras_applications(family):
    donor = applications.network(family)
    result = keras_bn.freeze(donor)
    assert {row.action for row in result.report.rows} == {"joined"}
    x = normal(2, 32, 32, 3)
    # Some fifty layers of float32 rounding.
    close(outputs(result.model, x), outputs(donor, x), 1e-4)
    assert not any(
        isinstance(layer, JoinedBatchNormalization) for layer in keras_bn.unfreeze(result.model).model.layers
    )


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    """BN that a layer makes in its own code, as half of KerasHub does."""

    def __init__(self, kind="keras", **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        make = layers.BatchNormalization if kind == "keras" else BatchNormalization
        self.steps = [layers.Dense(4), make(name="inner_bn")]

    def build(self, shape):
        self.steps[0].build(shape)
        self.steps[1].build((*shape[:-1], 4))

    def call(self, x, training=None):
        return keras.ops.relu(self.steps[1](self.steps[0](x), training=training))

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


@pytest.mark.parametrize("kind", ["keras", "ours"])
def test_batch_normalization_inside_of_custom_layers_is_frozen_in_place(kind, snapshot):
    inputs = keras.Input((5,))
    x = Block(kind, name="block")(inputs)
    donor = scramble(keras.Model(inputs, layers.BatchNormalization(name="bn")(layers.Dense(3, name="d")(x))))
    before = snapshot(donor)
    result = keras_bn.freeze(donor)
    assert snapshot(donor) == before
    assert outcome(result)["bn"] == ("joined", "with d")
    assert outcome(result)["block/inner_bn"] == ("joined", f"with {donor.get_layer('block').steps[0].name}")
    assert any("Block" in note and "unfreeze" in note for note in result.report.notes)
    x = normal(8, 5)
    close(outputs(result.model, x), outputs(donor, x), 2e-6)
    block = result.model.get_layer("block")
    statistics = block.steps[0].normalization.get_weights()[2:]
    in_training = keras.ops.convert_to_numpy(result.model(x, training=True))
    close(in_training, outputs(donor, x), 2e-6)
    trained(result.model, x)
    for new, old in zip(block.steps[0].normalization.get_weights()[2:], statistics, strict=True):
        np.testing.assert_array_equal(new, old)
    back = keras_bn.unfreeze(result.model)
    assert back.model.get_config() == donor.get_config()
    close(outputs(back.model, x), outputs(result.model, x), 2e-6)
    assert type(back.model.get_layer("block").steps[1]) is type(donor.get_layer("block").steps[1])


@pytest.fixture(params=people.MODELS, ids=lambda make: make.__name__)
def written_by_people(request):
    keras.utils.set_random_seed(0)
    model, inputs = request.param()
    return people.scramble(model), inputs


def frozen_part(model):
    return [
        value
        for variable, value in zip(model.variables, people.values(model.variables), strict=True)
        if "moving" in variable.name
    ]


@pytest.mark.parametrize("in_place", [False, True])
def test_models_as_people_write_them_are_frozen_and_unfrozen(written_by_people, in_place):
    donor, x = written_by_people
    expected, weights = people.outputs(donor, x), people.values(donor.variables)
    paths = [variable.path for variable in donor.variables]
    before = frozen_part(donor)
    result = keras_bn.freeze(donor, in_place=in_place)
    assert type(result.model) is type(donor) and (result.model is donor) == in_place
    actions = {row.layer: row.action for row in result.report.rows}
    assert set(actions.values()) <= {"joined", "frozen"}
    tolerance = 2e-2 if "half/batch_normalization" in actions else 5e-6  # a block in bfloat16
    for found in (people.outputs(result.model, x), people.outputs(result.model, x)):
        for new, old in zip(found, expected, strict=True):
            close(new, old, tolerance)
    people.outputs(result.model, x, training=True)
    for new, old in zip(frozen_part(result.model), before, strict=True):
        np.testing.assert_array_equal(new, old)
    back = keras_bn.unfreeze(result.model, in_place=in_place).model
    assert type(back) is type(donor)
    assert [variable.path for variable in back.variables] == paths
    for variable, old in zip(back.variables, weights, strict=True):
        if keras.backend.is_float_dtype(variable.dtype):  # the others are the states of random seeds
            np.testing.assert_array_equal(people.values([variable])[0], old)
    for new, old in zip(people.outputs(back, x), expected, strict=True):
        np.testing.assert_array_equal(new, old)


def test_what_is_joined_inside_is_seen_in_a_trace():
    for make, joined in ((people.blocks, 5), (people.subclassed, 2), (people.time_distributed, 1)):
        rows = keras_bn.freeze(make()[0]).report.rows
        assert [row.action for row in rows] == ["joined"] * joined
    recurrent = keras_bn.freeze(people.recurrent()[0]).report.rows
    assert {row.action for row in recurrent} == {"frozen"}
    assert all("calls it in code of its own" in row.reason for row in recurrent)


def test_layers_of_steps_are_joined_in_their_wrappers(tmp_path):
    inputs = keras.Input((5, 8, 3))
    x = layers.TimeDistributed(layers.Conv1D(4, 3, name="conv"), name="convs")(inputs)
    x = layers.TimeDistributed(layers.BatchNormalization(name="bn"), name="norms")(x)
    donor = scramble(keras.Model(inputs, layers.Flatten()(x)))
    result = keras_bn.freeze(donor)
    assert outcome(result) == {"norms/bn": ("joined", "with conv")}
    x = normal(4, 5, 8, 3)
    close(keras.ops.convert_to_numpy(result.model(x, training=True)), outputs(donor, x), 2e-6)
    result.model.save(tmp_path / "frozen.keras")
    back = keras_bn.unfreeze(keras.models.load_model(tmp_path / "frozen.keras")).model
    kinds = [[type(layer.layer) for layer in model.layers[1:3]] for model in (back, donor)]
    assert kinds[0] == kinds[1]
    np.testing.assert_array_equal(outputs(back, x), outputs(donor, x))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_freezing_in_place_is_undone(error, monkeypatch):
    ghost = keras_bn.GhostBatchNormalization(virtual_batch_size=2)
    stack = [keras.Input((5,)), Block(name="block"), layers.ReLU(), ghost, layers.BatchNormalization()]
    donor, x = scramble(keras.Sequential(stack)), normal(4, 5)
    expected, before = outputs(donor, x), [id(variable) for variable in donor.variables]
    kinds = [type(layer) for layer in donor._flatten_layers()]
    attempts = []

    def freezes(*_):
        attempts.append(None)
        if len(attempts) == 2:  # the first is of a copy
            raise error

    patched = property(lambda _: False, freezes)
    monkeypatch.setattr(type(ghost), "frozen_statistics", patched, raising=False)
    with pytest.raises(error):
        keras_bn.freeze(donor, in_place=True)
    assert [id(variable) for variable in donor.variables] == before
    assert [type(layer) for layer in donor._flatten_layers()] == kinds
    np.testing.assert_array_equal(outputs(donor, x), expected)


class Peeking(layers.Layer):
    """Its code needs to know the convolution that it calls."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.bn = layers.Dense(4, name="dense"), layers.BatchNormalization(name="bn")

    def call(self, x):
        return self.bn(self.dense(x)) * self.dense.units

    def get_config(self):
        return {**super().get_config(), "units": self.dense.units}


def test_code_that_needs_the_layers_themselves_gets_them():
    donor = scramble(keras.Sequential([keras.Input((3,)), Peeking(name="block")]))
    result = keras_bn.freeze(donor)
    action, reason = outcome(result)["block/bn"]
    assert action == "frozen" and "the code that calls it fails" in reason
    x = normal(4, 3)
    close(keras.ops.convert_to_numpy(result.model(x, training=True)), outputs(donor, x), 2e-6)


class Twofold(keras.Model):
    """Its parts stand in another order than they are called, and one is never called."""

    def __init__(self):
        super().__init__()
        self.norms = [layers.BatchNormalization(name="a"), layers.BatchNormalization(name="b")]
        self.linear = [layers.Dense(4, name="d"), layers.Dense(4, name="d")]
        self.idle = layers.BatchNormalization(name="idle")

    def call(self, x):
        x = keras.ops.relu(self.norms[1](self.linear[0](x)))
        return self.norms[0](self.linear[1](x))


def test_training_goes_on_where_layers_stand_in_another_order():
    keras.utils.set_random_seed(1)
    donor, x = Twofold(), normal(8, 4)
    donor(x)
    scramble(donor)
    donor.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    donor.fit(x, x, verbose=0)
    result = keras_bn.freeze(donor)
    assert outcome(result)["idle"] == ("left alone", "is never called")
    assert [outcome(result)[name] for name in "ab"] == [("joined", "with d")] * 2
    result.model.fit(x, x, verbose=0)
    back = keras_bn.unfreeze(result.model).model
    assert [layer.name for layer in (*back.norms, *back.linear)] == ["a", "b", "d", "d"]
    close(outputs(back, x), outputs(result.model, x), 2e-6)
    back.fit(x, x, verbose=0)


@pytest.mark.parametrize("family", [families.mobilenet, families.segformer, families.d_fine])
def test_models_of_keras_hub_come_back_to_the_bit(family):
    pytest.importorskip("keras_hub")
    donor = families.scramble(family())
    weights = people.values(donor.variables)
    result = keras_bn.freeze(donor)
    assert type(result.model) is type(donor)
    assert {row.action for row in result.report.rows} <= {"joined", "frozen"}
    back = keras_bn.unfreeze(result.model).model
    assert type(back) is type(donor)
    for new, old in zip(people.values(back.variables), weights, strict=True):
        np.testing.assert_array_equal(new, old)


def test_graphs_inside_of_wrappers_are_frozen_and_unfrozen(tmp_path):
    stack = [
        keras.Input((6, 3)),
        layers.Conv1D(4, 3, name="conv"),
        layers.BatchNormalization(name="bn"),
        layers.ReLU(),
    ]
    inputs = keras.Input((2, 6, 3))
    frames = layers.TimeDistributed(keras.Sequential(stack, name="cnn"), name="frames")(inputs)
    donor = scramble(keras.Model(inputs, frames))
    frozen = keras_bn.freeze(donor)
    assert outcome(frozen) == {"frames/bn": ("joined", "with conv")}
    x = normal(3, 2, 6, 3)
    close(keras.ops.convert_to_numpy(frozen.model(x, training=True)), outputs(donor, x), 2e-6)
    frozen.model.save(tmp_path / "frozen.keras")
    loaded = keras.models.load_model(tmp_path / "frozen.keras")
    close(keras.ops.convert_to_numpy(loaded(x, training=True)), outputs(donor, x), 2e-6)
    back = keras_bn.unfreeze(loaded).model
    np.testing.assert_array_equal(outputs(back, x), outputs(donor, x))
    assert not any(isinstance(layer, FrozenBatchNormalization) for layer in back._flatten_layers())


def test_a_frozen_model_folds_as_the_original_does():
    donor, x = net(), normal(8, 8, 8, 3)
    frozen = trained(keras_bn.freeze(donor).model, x)
    folded = keras_bn.fold(frozen)
    assert {row.action for row in folded.report.rows} == {"folded"}
    close(outputs(folded.model, x), outputs(frozen, x), 5e-6)


def test_a_graph_with_operations_is_unfrozen():
    inputs = keras.Input((6, 6, 3))
    x = keras.ops.pad(layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(inputs)), 1)
    model = keras.Model(inputs, layers.Flatten()(keras.ops.relu(x[:, :, 1:5])))
    thawed = keras_bn.unfreeze(keras_bn.freeze(model).model).model
    assert [layer.name for layer in thawed.layers if layer.weights] == ["conv", "bn"]
    for old, new in zip(model.weights, thawed.weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("make", [net, lambda: people.scramble(people.blocks()[0])])
def test_what_is_joined_is_said_to_be_by_those_who_do_not_see_it_called(make):
    frozen = keras_bn.freeze(make()).model
    x = normal(64, 8, 8, 3)
    joined = {
        row.layer
        for row in keras_bn.recalibrate(frozen, x, progress=False).report.rows
        if row.reason.count("unfreeze")
    }
    assert joined
    assert {
        each.layer for each in keras_bn.inspect(frozen, x, progress=False).layers if "unfreeze" in each.unseen
    } == joined


def test_a_layer_that_always_trains_goes_on_and_everything_else_comes_back_to_the_bit():
    """Its statistics move when the frozen model trains, so inference of the unfrozen one differs by these."""
    inputs = keras.Input((5,))
    x = layers.BatchNormalization(name="live")(layers.Dense(4)(inputs), training=True)
    x = layers.BatchNormalization(name="calm")(layers.Dense(4)(x))
    model, data = keras.Model(inputs, layers.Dense(2)(x)), normal(8, 5)
    frozen = keras_bn.freeze(model).model
    back = keras_bn.unfreeze(frozen).model
    close(keras.ops.convert_to_numpy(back(data, training=False)), outputs(model, data), 0)
    frozen(3 * data + 2, training=True)
    back = keras_bn.unfreeze(frozen).model
    moved = {
        new.path
        for old, new in zip(model.variables, back.variables, strict=True)
        if not np.array_equal(keras.ops.convert_to_numpy(old), keras.ops.convert_to_numpy(new))
    }
    assert moved == {"live/moving_mean", "live/moving_variance"}
    back.get_layer("live").set_weights(model.get_layer("live").get_weights())
    close(keras.ops.convert_to_numpy(back(data, training=False)), outputs(model, data), 0)
