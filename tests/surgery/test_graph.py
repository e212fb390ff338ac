import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_bn.errors import KerasBNError
from keras_bn.surgery.graph import calls, losses, rewrite, walk


def keep(call, copy):
    return None


def flat(model, inputs, **options):
    outputs = model(inputs, **options)
    return [ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(outputs)]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_keeping_everything_changes_nothing(donor, snapshot):
    model, inputs = donor
    before = snapshot(model)
    result = rewrite(model, keep)
    assert snapshot(model) == before
    keras.tree.assert_same_structure(result(inputs), model(inputs))
    assert equal(flat(result, inputs), flat(model, inputs))
    assert type(result) is type(model)
    assert [layer.name for layer in result.layers] == [layer.name for layer in model.layers]
    assert [tensor.name for tensor in result.inputs] == [tensor.name for tensor in model.inputs]
    assert getattr(result, "output_names", None) == getattr(model, "output_names", None)
    assert [(v.shape, v.dtype) for v in result.weights] == [(v.shape, v.dtype) for v in model.weights]
    assert losses(model, result) == ()


def test_nothing_is_shared(donor):
    model, inputs = donor
    expected = flat(model, inputs)
    result = rewrite(model, keep)
    assert not {id(v) for v in model.variables} & {id(v) for v in result.variables}
    for variable in result.trainable_variables:
        variable.assign(variable + 1)
    assert equal(flat(model, inputs), expected)


def test_random_seeds_are_carried_over(donor):
    model, inputs = donor
    flat(model, inputs, training=True)  # moves the seeds on
    result = rewrite(model, keep)
    assert equal(flat(result, inputs, training=True), flat(model, inputs, training=True))


def test_saves_and_loads(donor, tmp_path):
    model, inputs = donor
    result = rewrite(model, keep)
    result.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    assert equal(flat(loaded, inputs), flat(model, inputs))


def test_trainable_flags_are_carried_over(donor):
    model, _ = donor
    for layer in model._flatten_layers(include_self=False)[::2]:
        layer.trainable = False
    result = rewrite(model, keep)
    flags = [[layer.trainable for layer in each._flatten_layers()] for each in (result, model)]
    assert flags[0] == flags[1]
    assert len(result.trainable_weights) == len(model.trainable_weights)


def test_calls_come_after_those_they_depend_on(donor):
    model, _ = donor
    seen = set()
    for call in calls(model):
        assert all(producer in seen for producer in call.producers)
        assert all(call in producer.consumers for producer in call.producers)
        seen.add(call)
    paths = [call.path for call in walk(model)]
    assert len(set(paths)) == len(paths)


def test_a_chain_replaces_every_call(donor):
    """An identity after each weighted layer: names are unique, and the outputs stay."""
    model, inputs = donor

    def edit(call, copy):
        if call.is_output or not getattr(call.layer, "weights", []):
            return None
        return [copy(call.layer), layers.Identity(name=call.name_for("id"))]

    result = rewrite(model, edit)
    assert equal(flat(result, inputs), flat(model, inputs))
    inserted = [layer for layer in result._flatten_layers() if isinstance(layer, layers.Identity)]
    assert inserted
    assert len({layer.name for layer in result.layers}) == len(result.layers)


def test_an_empty_chain_removes_a_call():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.ReLU(), layers.Dense(1)])
    result = rewrite(model, lambda call, copy: [] if isinstance(call.layer, layers.ReLU) else None)
    x = np.ones((2, 3), "float32")
    assert [type(layer).__name__ for layer in result.layers] == ["Dense", "Dense"]
    assert equal(flat(result, x), flat(model.layers[2], model.layers[0](x)))


def test_a_copy_may_have_other_configuration_and_weights():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="dense")])
    kernel = np.ones((3, 2), "float32")

    def edit(call, copy):
        return [copy(call.layer, weights=[kernel], use_bias=False, activation="relu")]

    layer = rewrite(model, edit).get_layer("dense")
    assert np.array_equal(layer.kernel, kernel)
    assert layer.bias is None
    assert layer.activation is keras.activations.relu


def test_new_layers_keep_their_trainable_flag():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)])
    model.layers[0].trainable = False

    def edit(call, copy):
        return [copy(call.layer), layers.PReLU(trainable=call.layer.trainable, name=call.name_for("act"))]

    assert [layer.trainable for layer in rewrite(model, edit).layers] == [False, False, True, True]


def unregistered_loss(y, p):
    return keras.ops.mean(keras.ops.square(y - p))


@pytest.mark.parametrize("loss", ["mse", unregistered_loss])
def test_the_compile_configuration_is_carried_over(loss):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.25, momentum=0.5), loss, metrics=["mae"])
    result = rewrite(model, keep)
    assert result.optimizer is not model.optimizer
    assert (float(result.optimizer.learning_rate), result.optimizer.momentum) == (0.25, 0.5)
    x, y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
    assert result.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)


def test_what_cannot_be_carried_over_is_said():
    class Special(keras.Model):
        def __init__(self, units):
            inputs = keras.Input((3,))
            super().__init__(inputs, layers.Dense(units)(inputs))

    model = Special(2)
    model.compile(loss=lambda y, p: keras.ops.mean(p))
    result = rewrite(model, keep)
    x = np.ones((2, 3), "float32")
    assert equal(flat(result, x), flat(model, x))
    note_on_class, note_on_compile = losses(model, result)
    assert "Special" in note_on_class
    assert "not compiled" in note_on_compile


def test_a_model_class_built_from_inputs_and_outputs_is_kept():
    class Trainer(keras.Model):
        def train_step(self, data):
            return {"loss": 0.0}

    inputs = keras.Input((3,))
    model = Trainer(inputs, layers.Dense(2)(inputs))
    assert type(rewrite(model, keep)) is type(model)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow has strings")
def test_vocabularies_are_carried_over():
    lookup = layers.StringLookup(name="words")
    lookup.adapt(["b", "a", "b"])
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, layers.Embedding(4, 2)(lookup(inputs)))
    words = keras.ops.convert_to_tensor([["a"], ["b"], ["c"]], "string")
    assert equal(flat(rewrite(model, keep), words), flat(model, words))


@pytest.mark.parametrize("make", [layers.Normalization, lambda: layers.Discretization(num_bins=4)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_layer_adapted_to_is_carried_over(make, wrapped):
    adapted = make()
    adapted.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)))
    inputs = keras.Input((5, 4))
    outputs = layers.TimeDistributed(adapted)(inputs) if wrapped else adapted(inputs)
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(1).normal(3, 2, (6, 5, 4))
    assert equal(flat(rewrite(model, keep), x), flat(model, x))
    assert np.ptp(flat(model, x)[0])


def test_a_map_of_dtype_policies_is_carried_over():
    policy = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    policy["dense"] = keras.DTypePolicy("mixed_bfloat16")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2, name="dense", dtype=policy)(inputs))
    layer = rewrite(model, keep).get_layer("dense")
    assert (layer.compute_dtype, layer.variable_dtype) == ("bfloat16", "float32")


def test_functions_need_not_be_registered():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, activation=lambda t: keras.ops.tanh(t) * 2)])
    x = np.ones((2, 3), "float32")
    assert equal(flat(rewrite(model, keep), x), flat(model, x))


class Subclassed(keras.Model):
    def call(self, x):
        return x


class Overridden(keras.Model):
    """Has a graph, but computes something else."""

    def call(self, x, training=None):
        return 2 * super().call(x)


def overridden():
    inputs = keras.Input((2,))
    return Overridden(inputs, layers.Dense(1)(inputs))


def two_of_a_name():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="a"), layers.Dense(2, name="b")])
    model.layers[1].name = "a"
    return model


def test_a_layer_that_cannot_be_made_anew_is_copied():
    class Stubborn(layers.Layer):
        def __init__(self, units):
            super().__init__()
            self.units = units

        def call(self, x):
            return x * self.units

    model = keras.Sequential([keras.Input((2,)), Stubborn(3)])
    assert equal(flat(rewrite(model, keep), np.ones((1, 2))), [np.full((1, 2), 3.0)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Dense(1), "Expected a keras.Model, got Dense"),
        (Subclassed, "is subclassed.*keras.Model\\(inputs, outputs\\)"),
        (overridden, "is subclassed"),
        (lambda: keras.Sequential([layers.Dense(1)]), "is not built.*build\\(input_shape\\)"),
        (two_of_a_name, "2 layers named 'a'"),
    ],
)
def test_what_cannot_be_rewritten_is_refused(make, message):
    with pytest.raises(KerasBNError, match=message):
        rewrite(make(), keep)


class Once(keras.layers.Layer):
    """Can be called on symbolic tensors one time only."""

    calls = 0

    def compute_output_spec(self, x):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("called before")
        return keras.KerasTensor(x.shape, dtype=x.dtype)


def test_a_layer_that_cannot_be_called_again_is_named():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Once(name="once")(inputs))
    with pytest.raises(KerasBNError, match=r"(?s)'once'.*called again.*called before.*compute_output"):
        rewrite(model, lambda call, copy: None)
