"""Signatures of models without a graph: subclassed ones, and Sequential ones that Keras cannot build."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_bn

RNG = np.random.default_rng(0)


class Block(layers.Layer):
    """Without compute_output_shape, so a TimeDistributed around it does not know its own."""

    def __init__(self):
        super().__init__()
        self.dense, self.bn = layers.Dense(4), layers.BatchNormalization()

    def call(self, x):
        return self.bn(self.dense(x))


class Sum(keras.Model):
    """Takes a list."""

    def __init__(self):
        super().__init__()
        self.dense, self.bn = layers.Dense(3), layers.BatchNormalization()

    def call(self, inputs):
        first, second = inputs
        return self.bn(self.dense(first)) + second


def without_graph():
    stack = [keras.Input((5, 3)), layers.TimeDistributed(Block()), layers.Flatten(), layers.Dense(2)]
    return keras.Sequential(stack), RNG.normal(size=(6, 5, 3)).astype("float32")


def list_of_inputs():
    model, x = Sum(), [RNG.normal(size=(6, n)).astype("float32") for n in (4, 3)]
    model(x)
    return model, x


@pytest.mark.parametrize("make", [without_graph, list_of_inputs])
def test_examples_give_the_shapes(make, tmp_path):
    model, x = make()
    path = keras_bn.export(model, tmp_path, examples=x)
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    arrays = x if isinstance(x, list) else [x]
    named = dict(zip(serve.structured_input_signature[1], map(tf.constant, arrays), strict=True))
    (answer,) = serve(**named).values()
    np.testing.assert_allclose(answer, model(x, training=False), atol=1e-5)


def test_a_list_of_a_functional_model(tmp_path):
    inputs = [keras.Input((4,)), keras.Input((3,))]
    model = keras.Model(inputs, layers.Concatenate()(inputs))
    x = [RNG.normal(size=(6, n)).astype("float32") for n in (4, 3)]
    assert keras_bn.export(model, tmp_path, examples=x).exists()
    with pytest.raises(keras_bn.KerasBNError, match="examples must be given for the inputs"):
        keras_bn.export(model, tmp_path, examples=[*x, x[0]])


def test_functions_on_a_model_without_graph():
    model, x = without_graph()
    model(x)
    assert keras_bn.inspect(model, x, progress=False).layers[0].data is not None
    (row,) = keras_bn.fold(model).report.rows
    assert row.action == "multiply-add" and "compute_output_shape" in row.reason
    np.testing.assert_allclose(keras_bn.freeze(model).model(x), model(x), atol=1e-6)


def test_the_advice_works():
    class Telling(Block):
        def compute_output_shape(self, shape):
            return (*shape[:-1], 4)

    model = keras.Sequential([keras.Input((5, 3)), layers.TimeDistributed(Telling()), layers.Dense(2)])
    assert [row.action for row in keras_bn.freeze(model).report.rows] != []
