import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_bn
from keras_bn import BatchNormalization, KerasBNError
from keras_bn.layers.renorm import BatchRenormalization
from keras_bn.surgery._cloning import layers_in
from tests.surgery import applications, families, people


def scramble(model):
    """Give the BN layers of a model statistics and parameters that no two channels share."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if type(layer) is layers.BatchNormalization:
            for weight in layer.weights:
                low, high = (0.5, 1.5) if weight.name in ("gamma", "moving_variance") else (-0.3, 0.3)
                weight.assign(rng.uniform(low, high, weight.shape))
    return model


def net(**options):
    inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="bn", **options)(x)
    x = layers.Dense(3, name="fc")(layers.Flatten(name="flatten")(layers.ReLU(name="relu")(x)))
    return scramble(keras.Model(inputs, layers.BatchNormalization(name="out", scale=False)(x), name="net"))


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(16, 6, 6, 3)).astype("float32")


def kinds(model):
    return [type(layer) for layer in model._flatten_layers()]


def outcome(result):
    return {row.layer: (row.action, row.reason) for row in result.report.rows}


def close(a, b, tolerance=1e-6):
    """Equal to within a fraction of the scale: Keras multiplies by rsqrt, which is rounded differently."""
    a, b = ops.convert_to_numpy(a), ops.convert_to_numpy(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_outputs_weights_and_names_stay(images, snapshot):
    model = net()
    before = snapshot(model)
    result = keras_bn.convert(model)
    assert snapshot(model) == before
    assert [layer.name for layer in result.model.layers] == [layer.name for layer in model.layers]
    for old, new in zip(model.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    close(result.model.predict_on_batch(images), model.predict_on_batch(images))
    assert outcome(result) == {
        name: (
            "converted",
            "to BatchNormalization, averaging the biased variance, keeps the outputs to rounding",
        )
        for name in ("bn", "out")
    }
    assert all(row.difference <= 1e-6 for row in result.report.rows)


def test_options_stay():
    options = {
        "axis": 1,
        "momentum": 0.7,
        "epsilon": 1e-4,
        "center": False,
        "gamma_regularizer": keras.regularizers.L2(0.25),
        "gamma_constraint": "non_neg",
        "trainable": False,
        "synchronized": keras.backend.backend() == "tensorflow",  # Keras's layer has it there only
        "dtype": "mixed_float16",
    }
    layer = keras_bn.convert(net(**options)).model.get_layer("bn")
    assert type(layer) is BatchNormalization
    config, expected = layer.get_config(), layers.BatchNormalization(name="bn", **options).get_config()
    assert {key: config[key] for key in expected if key in config} == {
        key: value for key, value in expected.items() if not key.startswith("renorm")
    }


def test_options_of_a_weight_that_is_not_there_are_dropped(images):
    unused = {"beta_regularizer": "l2", "beta_constraint": "non_neg", "gamma_regularizer": "l1"}
    model = net(center=False, beta_initializer="ones", **unused)
    result = keras_bn.convert(model).model
    layer = result.get_layer("bn")
    assert type(layer) is BatchNormalization
    assert layer.beta_regularizer is None and layer.beta_constraint is None
    assert layer.gamma_regularizer is not None
    close(result.predict_on_batch(images), model.predict_on_batch(images))


@pytest.mark.parametrize("unbiased", [False, True])
def test_training_goes_on_as_before(unbiased, images):
    """Five steps of SGD: the same weights and statistics, unless the unbiased variance was asked for."""
    model = net()
    result = keras_bn.convert(model, unbiased_variance=unbiased).model
    for each in (model, result):
        each.compile(keras.optimizers.SGD(0.01), "mse")
        each.fit(images, np.ones((16, 3)), batch_size=16, epochs=5, shuffle=False, verbose=0)
    for old, new in zip(model.weights, result.weights, strict=True):
        if unbiased and old.path == "out/moving_variance":
            assert np.all(np.asarray(new) > np.asarray(old))  # by m/(m-1) = 16/15 of the moving part
        else:
            # float32 gradients by another kernel; the conv's own statistics have m = 256 values
            np.testing.assert_allclose(new, old, rtol=0, atol=1e-3 if unbiased else 2e-5)


@pytest.mark.parametrize("clipping", [None, {"rmax": 1.1, "rmin": 1 / 1.1, "dmax": 0.1}])
def test_batch_renormalization_becomes_ours(clipping):
    options = {"renorm": True, "momentum": 0.75, "renorm_momentum": 0.75, "renorm_clipping": clipping}
    model = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(name="bn", **options)])
    batches = np.random.default_rng(0).normal(0.5, 2.0, (5, 32, 3)).astype("float32")
    model(
        batches[0], training=True
    )  # until then Keras's deviation, 1, is not that of its variance, 1 + epsilon
    result = keras_bn.convert(model).model
    assert type(result.get_layer("bn")) is BatchRenormalization
    for x in batches[1:]:
        close(result(x, training=True), model(x, training=True), 1e-5)
    close(result(x), model(x), 1e-5)


def test_frozen_state_and_compilation_stay():
    model = net()
    model.get_layer("bn").trainable = False
    model.compile(keras.optimizers.Adam(0.125), "mse")
    result = keras_bn.convert(model).model
    assert [layer.trainable for layer in result.layers] == [layer.trainable for layer in model.layers]
    assert float(result.optimizer.learning_rate) == 0.125


def test_nested_shared_and_wrapped_layers(tmp_path):
    inner = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="bn")], name="inner")
    inputs = keras.Input((5, 4))
    shared = layers.BatchNormalization(name="shared")
    x = layers.TimeDistributed(layers.BatchNormalization(name="each"), name="frames")(inputs)
    x = inner(layers.GlobalAveragePooling1D()(shared(shared(x))))
    model = scramble(keras.Model(inputs, layers.BatchNormalization(name="fixed")(x, training=False)))
    data = np.random.default_rng(0).normal(size=(8, 5, 4)).astype("float32")
    result = keras_bn.convert(model)
    assert set(outcome(result)) == {"frames/each", "shared", "inner/bn", "fixed"}
    assert layers.BatchNormalization not in kinds(result.model)
    for training in (False, True):
        close(result.model(data, training=training), model(data, training=training), 1e-5)
    result.model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    close(loaded(data), result.model(data), tolerance=0)


def test_a_mask_still_reaches_the_layer():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(tokens)
    model = keras.Model(tokens, layers.BatchNormalization(name="bn")(x))
    data = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0]])
    result = keras_bn.convert(model).model
    close(result(data, training=True), model(data, training=True), 1e-5)
    for old, new in zip(model.get_weights(), result.get_weights(), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-7)


class Special(layers.BatchNormalization):
    pass


def test_what_is_left_alone_is_said():
    stack = [
        keras.Input((4,)),
        Special(name="special"),
        layers.BatchNormalization(name="slow", momentum=1.0),
        layers.BatchNormalization(name="renorm", renorm=True, renorm_clipping={"rmax": 3.0}),
        layers.BatchNormalization(name="apart", renorm=True, renorm_momentum=0.5),
        BatchNormalization(name="ours"),
        layers.BatchNormalization(name="plain"),
    ]
    model = keras.Sequential(stack)
    result = keras_bn.convert(model)
    reasons = {path: reason for path, (action, reason) in outcome(result).items() if action == "left alone"}
    assert list(reasons) == ["special", "slow", "renorm", "apart", "ours"]
    for path, words in {
        "special": "Special is a subclass",
        "slow": "momentum",
        "renorm": "set rmin to 1 / rmax",
        "apart": "one average",
        "ours": "already",
    }.items():
        assert words in reasons[path]
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    close(result.model(x), model(x))


@pytest.fixture(params=people.MODELS, ids=lambda make: make.__name__)
def written_by_people(request):
    keras.utils.set_random_seed(0)
    model, inputs = request.param()
    return people.scramble(model), inputs


@pytest.mark.parametrize("in_place", [False, True])
def test_layers_are_converted_wherever_they_are(written_by_people, in_place):
    model, inputs = written_by_people
    expected, names = people.outputs(model, inputs), [path for path, _ in layers_in(model)]
    variables = [variable.path for variable in model.variables]
    result = keras_bn.convert(model, in_place=in_place)
    assert (result.model is model) == in_place
    assert {row.action for row in result.report.rows} == {"converted"}
    assert layers.BatchNormalization not in kinds(result.model)
    assert [path for path, _ in layers_in(result.model)] == names
    assert [variable.path for variable in result.model.variables] == variables
    for old, new in zip(expected, people.outputs(result.model, inputs), strict=True):
        close(new, old, 3e-2 if "bfloat16" in str(model.get_config()) else 1e-5)
    if keras.backend.backend() == "jax" and "rnn" in names:
        return  # JAX traces the loop over time, which cannot update the averages of Keras's layer either
    result.model.compile("sgd", "mse")
    targets = keras.tree.map_structure(lambda y: np.zeros(y.shape), result.model(inputs))
    result.model.fit(inputs, targets, verbose=0)


def test_weights_of_a_converted_subclassed_model_load_into_its_class(tmp_path):
    model, inputs = people.subclassed()
    result = keras_bn.convert(people.scramble(model)).model
    assert type(result) is people.Net
    result.save_weights(tmp_path / "net.weights.h5")
    fresh = people.Net()
    fresh(inputs)
    fresh.load_weights(tmp_path / "net.weights.h5")
    np.testing.assert_array_equal(people.outputs(fresh, inputs), people.outputs(model, inputs))


def test_an_interrupted_conversion_in_place_changes_nothing(monkeypatch):
    model, inputs = people.blocks()
    expected, before = people.outputs(model, inputs), kinds(model)
    steps = []

    def build(self, shape):
        steps.append(None)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return original(self, shape)

    original = BatchNormalization.build
    monkeypatch.setattr(BatchNormalization, "build", build)
    with pytest.raises(KeyboardInterrupt):
        keras_bn.convert(model, in_place=True)
    assert kinds(model) == before
    for old, new in zip(expected, people.outputs(model, inputs), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_after_the_layers_were_exchanged_changes_nothing(monkeypatch, error):
    model, inputs = people.blocks()
    expected, before = people.outputs(model, inputs), kinds(model)

    def change(old, new):
        raise error

    monkeypatch.setattr("keras_bn.surgery.convert.change", change)
    with pytest.raises(error):
        keras_bn.convert(model, in_place=True)
    assert kinds(model) == before
    for old, new in zip(expected, people.outputs(model, inputs), strict=True):
        np.testing.assert_array_equal(new, old)


def test_the_optimizer_goes_on(images):
    """Its step, its moments, and what it excludes from weight decay."""
    model = net()
    optimizer = keras.optimizers.AdamW(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5))
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta"])
    model.compile(optimizer, "mse")
    model.fit(images, np.ones((16, 3)), batch_size=4, verbose=0)
    new = keras_bn.convert(model).model.optimizer
    assert int(new.iterations) == 4
    assert [v.path for v in new.variables] == [v.path for v in optimizer.variables]
    for a, b in zip(optimizer.variables, new.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(b), keras.ops.convert_to_numpy(a))


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.__name__)
def test_a_model_of_keras_hub_stays_one(family, tmp_path):
    pytest.importorskip("keras_hub")
    model = families.network(family)
    inputs = families.inputs_for(model)
    result = keras_bn.convert(model)
    assert {row.action for row in result.report.rows} == {"converted"}
    assert len(result.report.rows) == sum(kind is layers.BatchNormalization for kind in kinds(model))
    assert type(result.model) is type(model)
    assert result.model.get_config() == model.get_config()
    again = type(model).from_config(result.model.get_config())
    result.model.save_weights(tmp_path / "model.weights.h5")
    again.load_weights(tmp_path / "model.weights.h5")
    expected = people.outputs(model, inputs)
    for old, new in zip(expected, people.outputs(again, inputs), strict=True):
        np.testing.assert_array_equal(new, old)
    if family is not families.d_fine:  # it chooses queries by rank, which rounding may change
        for old, new in zip(expected, people.outputs(result.model, inputs), strict=True):
            close(new, old, 1e-4)


def test_a_task_of_keras_hub_keeps_preprocessor_backbone_and_preset(tmp_path):
    hub = pytest.importorskip("keras_hub")
    preprocessor = hub.models.ResNetImageClassifierPreprocessor(
        hub.layers.ResNetImageConverter(height=64, width=64, scale=1 / 255.0)
    )
    model = hub.models.ResNetImageClassifier(
        backbone=families.scramble(families.resnet()), num_classes=3, preprocessor=preprocessor
    )
    images = np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype("float32")
    result = keras_bn.convert(model).model
    assert type(result) is type(model)
    assert result.preprocessor is not None
    assert layers.BatchNormalization not in kinds(result.backbone)
    expected = model.predict(images, verbose=0)
    close(result.predict(images, verbose=0), expected, 1e-5)
    result.save_to_preset(str(tmp_path / "preset"))
    loaded = hub.models.ResNetImageClassifier.from_preset(str(tmp_path / "preset"))
    close(loaded.predict(images, verbose=0), expected, 1e-5)


def nan_weights():
    model = net()
    model.get_layer("bn").moving_mean.assign([0, np.nan, 0, 0])
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keras.Sequential([keras.Input((2,)), layers.Dense(1)]), "no batch normalization layer"),
        (nan_weights, "'bn/moving_mean'.*NaN or infinity"),
        (lambda: keras.Sequential([layers.BatchNormalization()]), "is not built"),
        (lambda: "model.keras", "Expected a keras.Model, got str"),
        (people.Net, "is not built"),
    ],
)
def test_bad_input_is_one_clear_error(make, message):
    with pytest.raises(KerasBNError, match=message):
        keras_bn.convert(make())


@pytest.mark.slow
@pytest.mark.parametrize("family", applications.FAMILIES)
def test_every_family_of_keras_applications(family):
    model = applications.network(family)
    x = np.random.default_rng(0).uniform(-1, 1, (2, *model.input_shape[1:])).astype("float32")
    result = keras_bn.convert(model)
    assert layers.BatchNormalization not in kinds(result.model)
    assert {action for action, _ in outcome(result).values()} == {"converted"}
    # Up to 200 layers of rounding, each some 1e-7 of the scale.
    close(result.model(x), model(x), 1e-4)
