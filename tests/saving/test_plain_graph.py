"""Weights as constants or variables: the same answers, and what is a variable."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.core.protobuf import saved_model_pb2

import keras_bn
from keras_bn import _tensorflow
from keras_bn.saving import grappler, plain_graph, saved_model
from keras_bn.saving.session import servable


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def network(name="conv"):
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, name=name, activation="relu")(inputs)
    x = layers.BatchNormalization()(layers.Conv2D(16, 3)(x))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x)))


def ask(path, images):
    with servable(path, "serving_default") as served:
        return served.run({"image": images})["scores"]


def variables(path):
    """The shapes of the variables of a version."""
    if not (path / "variables").exists():
        return []
    return sorted(tuple(shape) for _, shape in tf.train.list_variables(str(path / "variables" / "variables")))


@pytest.fixture
def large(monkeypatch):
    """Let every graph be large."""
    monkeypatch.setattr(plain_graph, "LARGEST_OPTIMIZED", 0)
    monkeypatch.setattr(saved_model, "LARGEST_OPTIMIZED", 0)
    monkeypatch.setattr(plain_graph, "LARGEST_CONSTANTS", 0)
    monkeypatch.setattr(plain_graph, "LARGEST_FUSED", 0)
    monkeypatch.setattr(plain_graph, "LARGEST_PRODUCTS", 0)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
# The kernels sum in other orders; bfloat16 has 8 bits.
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bfloat16", 0.02)])
def test_answers_are_those_of_the_model(tmp_path, large, fused, precision, tolerance):
    model, images = network(), normal(5, 8, 8, 3)
    path = keras_bn.export(model, tmp_path, examples=images, fused=fused, precision=precision)
    assert (3, 3, 16, 16) in variables(path) and (16, 3) in variables(path)
    expected = model.predict(images, verbose=0)
    scale = np.abs(expected).max()
    for batch in (images, images[:1]):
        np.testing.assert_allclose(ask(path, batch), expected[: len(batch)], rtol=0, atol=tolerance * scale)


def test_weights_of_products_are_variables_beside_the_optimizer(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_graph, "LARGEST_PRODUCTS", 4 * 16 * 3)
    path = keras_bn.export(network(), tmp_path)
    assert variables(path) == [(16, 3)]
    assert not (path / "assets.extra" / "saved_model_config.pb").exists()


def test_the_largest_are_variables_and_those_of_products_before_them(tmp_path, large, monkeypatch):
    monkeypatch.setattr(plain_graph, "LARGEST_CONSTANTS", 4 * 3 * 3 * 3 * 16 + 1000)
    path = keras_bn.export(network(), tmp_path)
    assert variables(path) == [(3, 3, 16, 16), (16, 3)]


def test_a_small_graph_has_constants_and_the_optimizer(tmp_path):
    path = keras_bn.export(network(), tmp_path)
    assert variables(path) == []
    assert not (path / "assets.extra" / "saved_model_config.pb").exists()


def test_without_the_optimizer_where_constants_are_large(tmp_path, large):
    path = keras_bn.export(network(), tmp_path)
    # session_overrides { disable_meta_optimizer: true }
    assert (path / "assets.extra" / "saved_model_config.pb").read_bytes() == b"\x0a\x02\x18\x01"


@pytest.mark.parametrize("fused", [False, True])
def test_it_is_checked_as_a_server_runs_it(tmp_path, monkeypatch, fused):
    configs = []
    session = tf.compat.v1.Session

    def spy(*args, config=None, **kwargs):
        configs.append(config)
        return session(*args, config=config, **kwargs)

    path = keras_bn.export(network(), tmp_path, fused=fused)
    monkeypatch.setattr(tf.compat.v1, "Session", spy)
    keras_bn.verify_inference_mode(path)
    (config,) = configs
    assert config.graph_options.rewrite_options.disable_meta_optimizer == fused


def test_layers_may_be_called_as_the_variables_are(tmp_path, large):
    model, images = network(name="weights"), normal(2, 8, 8, 3)
    path = keras_bn.export(model, tmp_path, examples=images)
    np.testing.assert_allclose(ask(path, images), model.predict(images, verbose=0), rtol=1e-4, atol=1e-5)


def test_other_loaders_of_tensorflow_read_it(tmp_path, large):
    model, images = network(), normal(2, 8, 8, 3)
    path = keras_bn.export(model, tmp_path)
    expected = model.predict(images, verbose=0)
    loaded = tf.saved_model.load(str(path)).signatures["serving_default"]
    layer = layers.TFSMLayer(str(path), call_endpoint="serving_default")
    for answer in (loaded(tf.constant(images)), layer(images)):
        np.testing.assert_allclose(answer["scores"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bfloat16", 0.02)])
def test_large_weights_of_products_never_pass_through_the_optimizer(
    tmp_path, large, monkeypatch, fused, precision, tolerance
):
    for name in ("LARGEST_CONSTANTS", "LARGEST_FUSED"):
        monkeypatch.setattr(plain_graph, name, 2**20)
    sizes = []

    def optimize_graph(meta_graph, config):
        sizes.append(meta_graph.ByteSize())
        return _tensorflow.optimize_graph(meta_graph, config)

    monkeypatch.setattr(grappler, "optimize_graph", optimize_graph)
    inputs = keras.Input((100,), name="image")
    shared = layers.Dense(100, activation="relu", bias_initializer="normal")
    scores = layers.Dense(90, name="scores", bias_initializer="normal")(
        layers.Add()([shared(shared(inputs)), inputs])
    )
    model, x = keras.Model(inputs, scores), normal(5, 100)
    path = keras_bn.export(model, tmp_path, examples=x, fused=fused, precision=precision)
    assert variables(path) == [(100, 90), (100, 100)]
    assert all(size < 4 * 100 * 90 for size in sizes) and len(sizes) == fused + (precision == "bfloat16")
    names = tf.train.list_variables(str(path / "variables" / "variables"))
    stored = {tf.train.load_variable(str(path / "variables" / "variables"), name).dtype for name, _ in names}
    assert stored == {np.dtype(tf.as_dtype(precision).as_numpy_dtype)}
    (graph,) = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs
    products = {node.op for node in graph.graph_def.node if "MatMul" in node.op}
    assert products == {"_MklNativeFusedMatMul" if fused else "MatMul"}
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(ask(path, x), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_weights_that_are_cast_are_constants(tmp_path, large, monkeypatch):
    monkeypatch.setattr(plain_graph, "LARGEST_PRODUCTS", 2**20)
    monkeypatch.setattr(plain_graph, "LARGEST_CONSTANTS", 2**20)
    inputs = keras.Input((20,), name="image")
    scores = layers.Dense(3, dtype="mixed_bfloat16")(layers.Dense(8)(inputs))
    model = keras.Model(inputs, {"scores": layers.Activation("linear", dtype="float32")(scores)})
    path, x = keras_bn.export(model, tmp_path), normal(4, 20)
    assert variables(path) == [(20, 8)]
    np.testing.assert_allclose(ask(path, x), model.predict(x, verbose=0)["scores"], atol=0.02)


def test_tables_beside_large_weights(tmp_path, large):
    words = keras.Input((2,), dtype="string", name="image")
    numbers = layers.StringLookup(vocabulary=["a", "b", "c"])(words)
    x = layers.Flatten()(layers.Embedding(4, 5)(numbers))
    model, x = keras.Model(words, {"scores": layers.Dense(3)(x)}), np.array([["a", "c"], ["b", "?"]])
    path = keras_bn.export(model, tmp_path, examples=x)
    np.testing.assert_allclose(ask(path, x), model(tf.constant(x))["scores"], rtol=1e-5)
