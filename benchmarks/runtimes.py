"""Runtimes that an export or a model can run in. Each is imported only where it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[], np.ndarray]
TENSORFLOW, LITERT, ONNX = "TensorFlow", "LiteRT", "ONNX Runtime"
OPENVINO, OPENVINO_NARROW = "OpenVINO float32", "OpenVINO bfloat16"
CONVERTED = (LITERT, ONNX)
OTHERS = (*CONVERTED, OPENVINO, OPENVINO_NARROW)
_MODULES = {
    TENSORFLOW: "benchmarks.networks",
    LITERT: "ai_edge_litert.interpreter",
    ONNX: "onnxruntime",
    OPENVINO: "openvino",
    OPENVINO_NARROW: "openvino",
}


def import_runtime(name: str) -> None:
    """Import what `open_runtime` needs, which takes seconds that are not those of a model.

    Raises:
        ImportError: If it is not installed.
    """
    importlib.import_module(_MODULES[name])


def open_runtime(name: str, file: Path, threads: int, image: np.ndarray) -> Run:
    """What runs `image` through a file in a runtime."""
    if name == TENSORFLOW:
        from benchmarks.networks import runs

        return runs(file, image, threads)
    if name == LITERT:
        return _litert(file, threads, image)
    if name == ONNX:
        return _onnx_runtime(file, threads, image)
    # OpenVINO computes in bfloat16 where the processor can, unless it is told not to.
    return _openvino(file, threads, image, "bf16" if name == OPENVINO_NARROW else "f32")


def _litert(file: Path, threads: int, image: np.ndarray) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=threads)
    (fed,), (fetched,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(fed["index"], image.shape)
    interpreter.allocate_tensors()

    def run() -> np.ndarray:
        interpreter.set_tensor(fed["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(fetched["index"])

    return run


def _onnx_runtime(file: Path, threads: int, image: np.ndarray) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: image})[0]


def _openvino(version: Path, threads: int, image: np.ndarray, precision: str) -> Run:
    import openvino

    model = openvino.Core().read_model(version)
    model.reshape(list(image.shape))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer([image])[0]
