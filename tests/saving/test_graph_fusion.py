"""Graphs that TensorFlow's optimizer fuses, with the answers of the model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

import keras_bn
from keras_bn.saving import graph_fusion, grappler
from keras_bn.saving.constants import fold_constants
from tests.saving.exported import ask, normal, optimized


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


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-6), ("bfloat16", 0.02)])
def test_swish_is_fused_with_a_convolution(tmp_path, precision, tolerance):
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(6, 3, activation="swish", bias_initializer="normal")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x)))
    images = normal(5, 8, 8, 4)
    path = keras_bn.export(model, tmp_path, examples=images, precision=precision)
    assert not {"_MklSwish", "Sigmoid", "Mul"} & set(optimized(path))
    expected = model.predict(images, verbose=0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        ask(path, {"image": images})["scores"], expected, rtol=0, atol=tolerance * scale
    )


def test_only_what_repeats_its_input_is_skipped():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], name="x")
        one, ones = tf.constant(1.0), tf.ones([2, 1, 3])
        first, second = tf.identity_n([one * x, x * 2.0])
        tf.identity(tf.identity(first) * ones + second * one, name="y")
    fetches = ["y:0"]
    skipped = graph_fusion.skip_identities(fold_constants(graph.as_graph_def(), fetches), fetches)
    kinds = [node.op for node in skipped.node if node.op not in ("Const", "Placeholder")]
    assert sorted(kinds) == ["AddV2", "Identity", "Mul", "Mul"]  # the last Identity is the output
    images = normal(2, 3)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        (y,) = tf.import_graph_def(skipped, return_elements=fetches)
        answer = session.run(y, {"import/x:0": images})
    np.testing.assert_array_equal(answer, np.stack([3 * images, 3 * images]))


def test_a_filter_that_is_computed_is_not_packed_once():
    info = tf.compat.v1.saved_model.build_tensor_info
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [1, 4, 4, 1], name="x")
        filters = tf.compat.v1.placeholder(tf.float32, [2, 2, 1, 1], name="filters")
        constant = tf.constant(normal(2, 2, 1, 1))
        y = tf.nn.conv2d(x, filters, 1, "SAME") + tf.nn.conv2d(x, constant, 1, "SAME")
        signature = meta_graph_pb2.SignatureDef(
            inputs={"x": info(x), "filters": info(filters)}, outputs={"y": info(y)}
        )
    meta_graph = meta_graph_pb2.MetaGraphDef(
        graph_def=graph.as_graph_def(), signature_def={"serving_default": signature}
    )
    meta_graph.meta_info_def.tags.append("serve")
    packed = {
        node.input[1]: node.attr["is_filter_const"].b
        for node in grappler.fuse(meta_graph, ()).node
        if "Conv2D" in node.op
    }
    assert packed.pop("filters") is False
    assert all(packed.values()) and packed


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
