"""Graphs that TensorFlow's optimizer fuses, with the answers of the model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

import keras_bn
from keras_bn.saving import grappler, saved_model
from keras_bn.saving.session import servable


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def ask(path, inputs):
    with servable(path, "serving_default") as served:
        return served.run(inputs)


def optimized(path):
    """The operations of a version after TensorFlow's optimizer."""
    file = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    meta_graph = meta_graph_pb2.MetaGraphDef()
    meta_graph.CopyFrom(file.meta_graphs[0])
    return [node.op for node in grappler.fuse(meta_graph).node]


def residual(activation, convolution=layers.Conv2D, batch_size=None):
    inputs = keras.Input((8, 8, 8), name="image", batch_size=batch_size)
    x = convolution(8, 3, padding="same")(inputs)
    x = layers.BatchNormalization(moving_mean_initializer="normal", gamma_initializer="uniform")(x)
    x = activation(layers.Add()([x, inputs]))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("slope", [0.3, 0.01, -0.5, 1.5])
@pytest.mark.parametrize("form", ["constants", "variables", "fused"])
def test_the_slope_behind_a_shortcut_is_kept(tmp_path, monkeypatch, slope, form):
    if form == "variables":
        monkeypatch.setattr(saved_model, "LARGEST_CONSTANTS", 0)
    model, images = residual(lambda x: keras.ops.leaky_relu(x, slope)), normal(5, 8, 8, 8)
    path = keras_bn.export(model, tmp_path, examples=images, fused=form == "fused")
    # The order of summation differs between the kernels; a lost slope changes the scores by a tenth.
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(ask(path, {"image": images})["scores"], expected, rtol=1e-4, atol=1e-5)


def test_the_slope_behind_a_shortcut_is_kept_where_the_batch_size_is_fixed(tmp_path):
    model = residual(lambda x: keras.ops.leaky_relu(x, 0.3), batch_size=2)
    images = normal(2, 8, 8, 8)
    path = keras_bn.export(model, tmp_path, examples=images)
    expected = model.predict(images, verbose=0, batch_size=2)
    np.testing.assert_allclose(ask(path, {"image": images})["scores"], expected, rtol=1e-4, atol=1e-5)


def test_the_slope_behind_a_shortcut_is_kept_in_bfloat16(tmp_path):
    model, images = residual(lambda x: keras.ops.leaky_relu(x, 0.6)), normal(5, 8, 8, 8)
    path = keras_bn.export(model, tmp_path, examples=images, precision="bfloat16")
    expected = model.predict(images, verbose=0)
    # bfloat16 has 8 bits; a lost slope changes the scores by a tenth.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ask(path, {"image": images})["scores"], expected, rtol=0, atol=0.02 * scale)


@pytest.mark.parametrize("convolution", [layers.Conv2D, layers.DepthwiseConv2D])
def test_an_activation_is_fused_with_a_convolution_without_bias(tmp_path, convolution):
    inputs = keras.Input((8, 8, 4), name="image")
    filters = () if convolution is layers.DepthwiseConv2D else (6,)
    x = layers.ReLU(6.0)(convolution(*filters, 3, use_bias=False, padding="same")(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x)))
    images = normal(5, 8, 8, 4)
    path = keras_bn.export(model, tmp_path, examples=images)
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(ask(path, {"image": images})["scores"], expected, rtol=1e-5, atol=1e-6)
    assert "Relu6" not in optimized(path)


def test_a_shortcut_is_fused_with_a_convolution_without_bias(tmp_path):
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, padding="same")(inputs)
    x = layers.ReLU()(layers.Add()([x, inputs]))
    model = keras.Model(inputs, layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x)))
    path = keras_bn.export(model, tmp_path, examples=normal(5, 8, 8, 4))
    assert not {"Add", "AddV2", "Relu"} & set(optimized(path))


def test_what_is_read_twice_gets_no_bias(tmp_path):
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, padding="same")(inputs)
    x = layers.Concatenate()([x, layers.ReLU()(x)])
    model = keras.Model(inputs, layers.GlobalAveragePooling2D(name="means")(x))
    images = normal(5, 8, 8, 4)
    path = keras_bn.export(model, tmp_path, examples=images)
    file = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    assert "BiasAdd" not in {node.op for node in file.meta_graphs[0].graph_def.node}
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(ask(path, {"image": images})["means"], expected, rtol=1e-5, atol=1e-6)


def test_transposed_weights_get_a_bias_of_the_right_length():
    from keras_bn.saving.graph_fusion import give_biases

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 5], name="x")
        tf.nn.relu(tf.matmul(x, tf.constant(normal(7, 5)), transpose_b=True), name="y")
    definition = graph.as_graph_def()
    give_biases(definition, ["y:0"])
    with tf.Graph().as_default() as biased:
        tf.import_graph_def(definition, name="")
    with tf.compat.v1.Session(graph=biased) as session:
        rows = normal(3, 5)
        answer = session.run("y:0", {"x:0": rows})
    assert "BiasAdd" in {operation.type for operation in biased.get_operations()}
    np.testing.assert_allclose(answer, np.maximum(rows @ normal(7, 5).T, 0), rtol=1e-5, atol=1e-6)
