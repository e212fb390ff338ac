"""Other runtimes that an export or a model can run in, each with two threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

Run = Callable[[], np.ndarray]
NAMES = ("LiteRT", "ONNX Runtime", "OpenVINO float32", "OpenVINO bfloat16")


def open_runtime(name: str, model: keras.Model, version: Path, image: np.ndarray, folder: Path) -> Run:
    """What runs `image` in a runtime: `model` through Keras's ONNX file in ONNX Runtime, `version` in the
    others."""
    if name == "LiteRT":
        return _litert(version, image)
    if name == "ONNX Runtime":
        return _onnx_runtime(model, image, folder / "model.onnx")
    # OpenVINO computes in bfloat16 where the processor can, unless it is told not to.
    return _openvino(version, image, "bf16" if name.endswith("bfloat16") else "f32")


def _litert(version: Path, image: np.ndarray) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    converted = tf.lite.TFLiteConverter.from_saved_model(str(version)).convert()
    interpreter = Interpreter(model_content=converted, num_threads=2)
    (fed,), (fetched,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.allocate_tensors()

    def run() -> np.ndarray:
        interpreter.set_tensor(fed["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(fetched["index"])

    return run


def _onnx_runtime(model: keras.Model, image: np.ndarray, file: Path) -> Run:
    import onnxruntime
    import tf2onnx  # noqa: F401 - Keras needs it for the file

    model.export(file, format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    # Its threads would go on spinning, at the cost of whatever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: image})[0]


def _openvino(version: Path, image: np.ndarray, precision: str) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(version)
    model.reshape(list(image.shape))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": 2,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer([image])[0]
