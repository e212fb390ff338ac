"""Normalizations inside layers of one's own, whose code becomes a part of the graph if it can."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_bn
from tests.surgery import people
from tests.surgery.folding import scramble

L = keras.layers


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
        after, before = (ops.convert_to_numpy(each(inputs)) for each in (result.model, model))
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


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
    assert row.action == "multiply-add"
    # JAX does not even run the branches on symbolic tensors.
    assert "are no graph" in row.reason or "does not run on symbolic tensors" in row.reason
    data = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    frozen = keras_bn.freeze(model)
    assert [row.action for row in frozen.report.rows] == ["frozen"]
    expected = ops.convert_to_numpy(model(data))
    for after in (result.model, frozen.model):
        np.testing.assert_allclose(ops.convert_to_numpy(after(data)), expected, rtol=1e-5, atol=1e-6)
