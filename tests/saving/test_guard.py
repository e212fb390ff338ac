"""Requests of wrong shapes against exports, in processes of their own: what is unguarded may end one."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.core.protobuf import saved_model_pb2

import keras_bn
from keras_bn.saving import plain_graph, saved_model

OK, INVALID_ARGUMENT = 0, 3
C_API = Path(__file__).with_name("c_api.py")


def signature_of(path, name="serving_default"):
    written = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    return written.meta_graphs[0].signature_def[name]


def ask(path, shapes, signature="serving_default"):
    """The status code of a request of zeros of each shape."""
    asked = signature_of(path, signature)
    (fed,), fetched = asked.inputs.values(), next(iter(asked.outputs.values()))
    run = subprocess.run(
        [sys.executable, C_API, path, fed.name, fetched.name, str(fed.dtype), *shapes],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    codes = [int(line.split()[-1]) for line in run.stdout.splitlines()]
    return codes, run.returncode


def conv_net(batch_size=None, dtype="float32", size=8):
    inputs = keras.Input((size, size, 3), batch_size=batch_size, dtype=dtype, name="image")
    x = layers.Conv2D(4, 3)(layers.Rescaling(1.0)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(3, name="scores")(x))


FORMS = ["constants", "variables", "in functions"]
WRONG = ["8x8x3", "8x8", "3", "2x1x8x8x3", "2x9x8x3", "2x8x8x1", "2x8x0x3"]


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64"])
@pytest.mark.parametrize("constants", [2**27, 0], ids=["constants", "variables"])
def test_wrong_shapes_are_refused_and_do_not_end_the_process(tmp_path, monkeypatch, dtype, constants):
    monkeypatch.setattr(saved_model, "LARGEST_CONSTANTS", constants)
    path = keras_bn.export(conv_net(dtype=dtype), tmp_path)
    codes, ended = ask(path, ["2x8x8x3", *WRONG, "1x8x8x3"])
    assert (codes, ended) == ([OK, *[INVALID_ARGUMENT] * len(WRONG), OK], 0)


def test_the_same_request_ends_the_process_where_nothing_guards(tmp_path):
    # What the guard is for. If a release of TensorFlow refuses it by itself, the guard can go.
    conv_net().export(tmp_path / "keras", verbose=False)
    codes, ended = ask(tmp_path / "keras", ["2x8x8x3", "8x8x3"])
    if not tf.config.list_physical_devices("GPU"):
        assert codes == [OK] and ended != 0


def test_fixed_batch_size(tmp_path):
    path = keras_bn.export(conv_net(batch_size=3), tmp_path)
    assert [d.size for d in signature_of(path).inputs["image"].tensor_shape.dim] == [3, 8, 8, 3]
    assert ask(path, ["3x8x8x3", "2x8x8x3", "8x8x3"]) == ([OK, INVALID_ARGUMENT, INVALID_ARGUMENT], 0)


def test_sizes_left_open(tmp_path):
    inputs = keras.Input((None, None), name="x")
    path = keras_bn.export(keras.Model(inputs, layers.Dense(1)(inputs[..., None])), tmp_path)
    assert ask(path, ["2x5x7", "2x5", "2x5x7x1"]) == ([OK, INVALID_ARGUMENT, INVALID_ARGUMENT], 0)
    assert ask(keras_bn.export(conv_net(size=None), tmp_path), ["1x9x7x3", "9x7x3"])[1] == 0


def test_every_signature_and_strings(tmp_path):
    path = keras_bn.export(conv_net(), tmp_path, image_bytes="raw")
    assert ask(path, ["2x8x8x3", "8x8x3"]) == ([OK, INVALID_ARGUMENT], 0)
    refused = [INVALID_ARGUMENT] * 2
    assert ask(path, ["1x1", ""], "serving_image") == (refused, 0)


def test_every_input(tmp_path):
    x, y = keras.Input((4,), name="x"), keras.Input((4,), name="y")
    path = keras_bn.export(keras.Model([x, y], layers.Add()([x, y])), tmp_path)
    graph = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    nodes = graph.meta_graphs[0].graph_def.node
    guarded = {node.input[0] for node in nodes if node.op == "EnsureShape"}
    assert guarded == {info.name.removesuffix(":0") for info in signature_of(path).inputs.values()}


def test_signature_declares_what_the_guard_checks(tmp_path):
    path = keras_bn.export(conv_net(), tmp_path)
    assert [d.size for d in signature_of(path).inputs["image"].tensor_shape.dim] == [-1, 8, 8, 3]


def weights_as(form, monkeypatch):
    """Let weights be constants or variables of a plain graph, or variables that functions read."""
    if form == "variables":
        monkeypatch.setattr(plain_graph, "LARGEST_OPTIMIZED", 0)
        monkeypatch.setattr(plain_graph, "LARGEST_CONSTANTS", 0)
        monkeypatch.setattr(plain_graph, "LARGEST_PRODUCTS", 0)
    elif form == "in functions":
        monkeypatch.setattr(saved_model, "LARGEST_CONSTANTS", 0)


@pytest.mark.parametrize("form", FORMS)
def test_other_runtimes_read_it(tmp_path, monkeypatch, form):
    openvino = pytest.importorskip("openvino")
    weights_as(form, monkeypatch)
    model = conv_net()
    path = keras_bn.export(model, tmp_path)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    expected = model.predict(images, verbose=0)
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", precision)
    np.testing.assert_allclose(compiled(images)[0], expected, rtol=1e-5, atol=1e-6)
    converted = tf.lite.TFLiteConverter.from_saved_model(str(path)).convert()
    np.testing.assert_allclose(lite(converted, images), expected, rtol=1e-5, atol=1e-6)


def lite(model, images):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(model_content=model)
    (fed,), (fetched,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(fed["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(fed["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(fetched["index"])


@pytest.mark.parametrize("form", FORMS)
def test_onnx_is_made_of_it(tmp_path, monkeypatch, form):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    weights_as(form, monkeypatch)
    model = conv_net()
    path, file = keras_bn.export(model, tmp_path), tmp_path / "model.onnx"
    command = [
        sys.executable,
        "-m",
        "tf2onnx.convert",
        "--saved-model",
        path,
        "--output",
        file,
        "--tag",
        "serve",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    (answer,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(answer, model.predict(images, verbose=0), rtol=1e-5, atol=1e-6)
