import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_bn
from keras_bn.surgery._cloning import Clone, exchanged_in_place, layers_in
from tests.surgery import people

X = people.normal(6, 5)


@pytest.fixture(params=people.MODELS, ids=lambda make: make.__name__)
def donor(request):
    keras.utils.set_random_seed(0)
    model, inputs = request.param()
    return people.scramble(model), inputs


def everything(model):
    """All that surgery must leave alone."""
    every = [model, *(layer for _, layer in layers_in(model))]
    return (
        [value.tobytes() for value in people.values(model.variables)],
        [(id(layer), layer.name, layer.trainable, len(layer._inbound_nodes)) for layer in every],
        [variable.path for variable in model.variables],
    )


def test_a_clone_computes_the_same_and_shares_nothing(donor):
    model, inputs = donor
    expected, before = people.outputs(model, inputs), everything(model)
    result = Clone(model).model
    assert type(result) is type(model)
    for old, new in zip(expected, people.outputs(result, inputs), strict=True):
        np.testing.assert_array_equal(new, old)
    assert [layer.name for _, layer in layers_in(result)] == [layer.name for _, layer in layers_in(model)]
    assert [v.path for v in result.variables] == [v.path for v in model.variables]
    for variable in result.trainable_variables:
        variable.assign(variable + 1)
    assert everything(model) == before
    assert not {id(v) for v in model.variables} & {id(v) for v in result.variables}
    for old, new in zip(expected, people.outputs(model, inputs), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_clone_draws_the_same_random_numbers(donor):
    model, inputs = donor
    result = Clone(model).model
    for old, new in zip(*(people.outputs(m, inputs, training=True) for m in (model, result)), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_clone_of_a_plain_model_saves_and_loads(tmp_path):
    model, inputs = people.gan()
    result = Clone(people.scramble(model)).model
    result.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(people.outputs(loaded, inputs), people.outputs(model, inputs))
    result.save_weights(tmp_path / "w.weights.h5")
    model.load_weights(tmp_path / "w.weights.h5")


def test_what_keras_does_not_see_is_copied_too():
    class Hidden(layers.Layer):
        def __init__(self):
            super().__init__()
            self.helper = people.Helper(layers.BatchNormalization(name="held"))
            dense = layers.Dense(5, name="in_a_closure")
            self.function = functools.partial(lambda x, scale: dense(x) * scale, scale=2.0)
            self.method = self.double

        def double(self, x):
            return x * 2

        def call(self, x):
            return self.method(self.helper.layer(self.function(x)))

    layer = Hidden()
    expected = keras.ops.convert_to_numpy(layer(X))
    clone = Clone(layer)
    held, copied = layer.helper.layer, clone.model.helper.layer
    assert copied is not held and clone.of(held) is copied
    assert clone.model.method.__self__ is clone.model
    copied.moving_mean.assign(copied.moving_mean + 1)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(X)), expected)
    assert {path for path, _ in layers_in(layer)} == {"held", "in_a_closure"}


def test_the_rest_of_a_graph_is_left_out():
    inputs = keras.Input((5,))
    backbone = keras.Model(inputs, layers.Dense(3, name="small")(inputs))
    keras.Model(inputs, layers.Dense(1, name="elsewhere")(backbone(inputs)))
    result = Clone(backbone).model
    assert [path for path, _ in layers_in(result)] == [path for path, _ in layers_in(backbone)]
    extractor = keras.Model(result.input, result.get_layer("small").output)
    assert extractor.output_shape == (None, 3)


@pytest.mark.parametrize("excluded", [False, True])
def test_training_goes_on(excluded):
    """Two donors trained alike; one is cloned half way. The clone ends where the other ends, to the bit."""

    def trained():
        keras.utils.set_random_seed(0)
        dense, bn = layers.Dense(4, name="dense"), layers.BatchNormalization(name="bn")
        model = keras.Sequential([keras.Input((5,)), dense, bn, layers.Dense(1, name="out")])
        schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.1)
        if excluded:
            optimizer.exclude_from_weight_decay(var_names=["gamma", "beta"])
        model.compile(optimizer, lambda y, p: keras.ops.mean((y - p) ** 2, -1), metrics=["mae"])
        model.fit(X, X[:, :1], batch_size=2, shuffle=False, verbose=0)
        return model

    straight, model = trained(), trained()
    result = Clone(model).model
    frozen = people.values(model.optimizer.variables)
    for each in (straight, result):
        each.fit(X, X[:, :1], batch_size=2, shuffle=False, verbose=0)
    assert int(result.optimizer.iterations) == 6
    for old, new in zip(*(people.values(m.variables) for m in (straight, result)), strict=True):
        np.testing.assert_array_equal(new, old)
    for old, new in zip(frozen, people.values(model.optimizer.variables), strict=True):
        np.testing.assert_array_equal(new, old)


class Plus(layers.Layer):
    def call(self, x, training=None, mask=None):
        return x + 1


def batch_norms(model):
    return [layer for _, layer in layers_in(model) if type(layer) is layers.BatchNormalization]


def test_layers_are_exchanged_wherever_they_are(donor):
    model, inputs = donor
    before = everything(model)
    pairs = [(layer, Plus(name=layer.name)) for layer in batch_norms(model)]
    result = Clone(model, pairs).model
    assert not batch_norms(result)
    assert everything(model) == before
    assert [layer.name for _, layer in layers_in(result)] == [layer.name for _, layer in layers_in(model)]
    expected = people.outputs(result, inputs)

    with exchanged_in_place(model, pairs):
        pass
    assert not batch_norms(model)
    for old, new in zip(expected, people.outputs(model, inputs), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exchange_in_place_is_undone(donor, error):
    model, inputs = donor
    expected, before = people.outputs(model, inputs), everything(model)
    pairs = [(layer, Plus(name=layer.name)) for layer in batch_norms(model)]
    with pytest.raises(error), exchanged_in_place(model, pairs):
        assert not batch_norms(model)
        raise error
    assert everything(model) == before
    for old, new in zip(expected, people.outputs(model, inputs), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_failure_half_way_through_an_exchange_is_undone(donor, monkeypatch):
    from keras_bn.surgery import _cloning

    model, _ = donor
    before, steps = everything(model), []
    set_item = _cloning._set_item

    def interrupted(*arguments):
        set_item(*arguments)
        steps.append(None)
        if len(steps) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(_cloning, "_set_item", interrupted)
    pairs = [(layer, Plus(name=layer.name)) for layer in batch_norms(model)]
    with pytest.raises(KeyboardInterrupt), exchanged_in_place(model, pairs):
        pass
    assert everything(model) == before


def compile_function(function, **options):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, **options)
    if backend == "jax":
        import jax

        return jax.jit(function)
    import torch

    return torch.compile(function, backend="eager")


def compiled_inference():
    """A model that holds compiled functions of itself, which have been traced."""
    model = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(name="bn"), layers.Dense(2)])
    model.compiled_inference = compile_function(lambda x: model(x))
    model.functions = {
        "method": compile_function(model.call),
        "pure": compile_function(lambda x, *, by=2.0: x * by),
    }
    x = keras.ops.convert_to_tensor(people.normal(4, 3))
    for function in (model.compiled_inference, *model.functions.values()):
        function(x)
    return model, x


def plain(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_compiled_functions_of_a_clone_run_the_clone():
    model, x = compiled_inference()
    expected = plain(model(x))
    clone = Clone(model).model
    for weight in clone.layers[-1].weights:
        weight.assign(weight * 2)
    assert np.abs(plain(clone(x)) - expected).max() > 0
    for function in (clone.compiled_inference, clone.functions["method"]):
        assert function is not model.compiled_inference
        np.testing.assert_allclose(plain(function(x)), plain(clone(x)), rtol=1e-6)
    np.testing.assert_allclose(plain(model.compiled_inference(x)), expected, rtol=1e-6)
    np.testing.assert_array_equal(plain(clone.functions["pure"](x)), 2 * plain(x))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it is TensorFlow that has signatures")
def test_a_compiled_function_of_a_clone_has_the_same_signature():
    import tensorflow as tf

    model, x = compiled_inference()
    signature = [tf.TensorSpec([None, 3])]
    model.signed = compile_function(lambda x: model(x), input_signature=signature)
    model.signed(x)
    assert Clone(model).model.signed.input_signature == model.signed.input_signature


def test_compiled_functions_run_the_layers_exchanged_in_place():
    model, x = compiled_inference()
    old = model.get_layer("bn")
    before = model.compiled_inference
    with exchanged_in_place(model, [(old, Plus(name="bn"))]):
        np.testing.assert_allclose(plain(model.compiled_inference(x)), plain(model(x)), rtol=1e-6)
    with pytest.raises(KeyError), exchanged_in_place(model, [(model.get_layer("bn"), old)]):
        raise KeyError
    np.testing.assert_allclose(plain(model.compiled_inference(x)), plain(model(x)), rtol=1e-6)
    assert model.compiled_inference is not before


def test_a_layer_of_a_module_named_as_one_of_pythons_is_copied_with_all_it_holds():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.bn = keras.layers.BatchNormalization()

        def call(self, x):
            return self.bn(x)

    Block.__module__ = "test.blocks"
    model = keras.Sequential([keras.Input((4,)), Block()])
    copy = Clone(model).model
    assert copy.layers[0].bn is not model.layers[0].bn


class Namesakes(layers.Layer):
    """Two BN layers of one name and different widths."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(5)
        self.first, self.second = (layers.BatchNormalization(name="bn") for _ in range(2))

    def call(self, x):
        return ops.concatenate([self.first(self.dense(x)), self.second(x)], -1)


@pytest.mark.parametrize("in_place", [False, True])
def test_layers_of_one_name_are_told_apart(in_place):
    model = keras.Sequential([keras.Input((3,)), Namesakes(name="block"), layers.Dense(2)])
    model = people.scramble(model)
    x = people.normal(20, 3)
    expected = people.outputs(model, x)
    assert [path for path, _ in layers_in(model) if "bn" in path] == ["block/bn", "block/bn (2)"]
    for function in (keras_bn.convert, keras_bn.fold, keras_bn.freeze):
        result = function(model)
        assert [row.layer for row in result.report.rows] == ["block/bn", "block/bn (2)"]
        np.testing.assert_allclose(people.outputs(result.model, x), expected, rtol=0, atol=1e-5)
    one = keras_bn.recalibrate(model, x, layers="block/bn (2)", progress=False, in_place=in_place)
    assert [row.action for row in one.report.rows] == ["left alone", "recalibrated"]
    block = one.model.layers[0]
    np.testing.assert_allclose(ops.convert_to_numpy(block.second.moving_mean), x.mean(0), atol=1e-6)
    assert len(keras_bn.inspect(one.model, x, progress=False).layers) == 2
