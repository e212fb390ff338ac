"""Exported networks at batch size 1: Keras's export, ours, and other runtimes.

`python -m benchmarks.export [network ...]` takes the names in `NETWORKS`. All candidates of a network take
turns
in one run. Load time and memory are those of a fresh process that loads the version and answers once.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_bn
from benchmarks.timing import interleaved, machine, table

KERAS, OURS, NARROW = "Keras", "ours", "ours bfloat16"
THREADS = (1, 2)
# OpenVINO computes in bfloat16 where the processor can, unless it is told not to.
RUNTIMES = ("LiteRT", "ONNX Runtime", "OpenVINO float32", "OpenVINO bfloat16")
MISSING = "missing"

LATENCIES = """
Milliseconds of one 224x224 image (median), and how many times as fast as Keras's export at its better
number of
threads. TensorFlow has 1/1 and 2/2 intra-op/inter-op threads, the other runtimes have two threads.
"""
SIZES = """
A fresh process that loads a version with two threads and answers once: seconds, and resident memory beyond
that
of TensorFlow itself, both also relative to Keras's export; megabytes on disk; the largest change of the
outputs,
relative to their scale.
"""


def _application(name: str) -> Callable[[], keras.Model]:
    return lambda: getattr(keras.applications, name)(weights=None)


def _keras_hub() -> keras.Model:
    """EfficientNet of KerasHub, whose BN layers are inside layers of its own."""
    import keras_hub

    backbone = keras_hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 7,
        stackwise_depth_coefficients=[1.0] * 7,
        stackwise_squeeze_and_excite_ratios=[0.25] * 7,
        image_shape=(224, 224, 3),
    )
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, keras.layers.Dense(1000, activation="softmax", name="classes")(x))


NETWORKS = {
    **{
        name: _application(name)
        for name in ("MobileNetV2", "ResNet50", "EfficientNetB0", "VGG16", "ConvNeXtTiny")
    },
    "KerasHub EfficientNet": _keras_hub,
}


def main(names: list[str]) -> None:
    latencies, sizes = [], []
    for name in names:
        try:
            latency, size = _network(name)
        except ImportError as error:
            latency, size = [name, f"{MISSING}: {error.name}"], [name, f"{MISSING}: {error.name}"]
        latencies.append(latency)
        sizes += size if size and isinstance(size[0], list) else [size]
        keras.backend.clear_session()
        gc.collect()
    print(machine())
    print(LATENCIES)
    columns = [f"{each} {n}/{n}" for each in (KERAS, OURS, NARROW) for n in THREADS]
    print(table(["network", *columns, *RUNTIMES], latencies))
    print(SIZES)
    print(table(["network", "version", "load s", "memory MB", "disk MB", "change"], sizes))


def _network(name: str) -> tuple[list[str], list[list[str]]]:
    model = _with_statistics(NETWORKS[name]())
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    expected = model.predict(image, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        paths = {KERAS: Path(folder) / "keras"}
        model.export(paths[KERAS], verbose=False)
        examples = np.random.default_rng(1).uniform(-1, 1, (4, 224, 224, 3)).astype(np.float32)
        for version, precision in ((OURS, "float32"), (NARROW, "bfloat16")):
            paths[version] = keras_bn.export(
                model, Path(folder) / "ours", precision=precision, examples=examples, tolerance=0.2
            )
        candidates = {
            f"{version} {count}/{count}": _session(path, image, count)
            for version, path in paths.items()
            for count in THREADS
        }
        absent: dict[str, str] = {}
        for runtime in RUNTIMES:
            try:
                candidates[runtime] = _runtime(runtime, model, paths[OURS], image, Path(folder))
            except ImportError:
                absent[runtime] = MISSING
            except Exception as error:
                absent[runtime] = f"failed: {type(error).__name__}"
        changes = {
            key: float(np.abs(run() - expected).max() / np.abs(expected).max())
            for key, run in candidates.items()
        }
        seconds = interleaved(candidates, rounds=12, warmup=2)
        candidates.clear()
        loads = {version: _load(path) for version, path in paths.items()}
        disk = {version: _bytes(path) for version, path in paths.items()}
    base = min(seconds[f"{KERAS} {count}/{count}"] for count in THREADS)
    columns = [f"{version} {count}/{count}" for version in paths for count in THREADS]
    cells = [
        f"{1e3 * seconds[key]:.1f} ({base / seconds[key]:.2f})" if key in seconds else absent[key]
        for key in (*columns, *RUNTIMES)
    ]
    first_load, first_memory = loads[KERAS]
    rows = []
    for version, (load, memory) in loads.items():
        relative = f"{load:.1f} ({load / first_load:.2f})", f"{memory:.0f} ({memory / first_memory:.2f})"
        rows.append(
            [name, version, *relative, f"{disk[version] / 1e6:.1f}", f"{changes[f'{version} 2/2']:.1e}"]
        )
    return [name, *cells], rows


def _with_statistics(model: keras.Model) -> keras.Model:
    """Random weights, which cost the same as trained ones, with population statistics that are not 0 and
    1."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith("moving_mean"):
            variable.assign(random.normal(0, 0.1, variable.shape))
        elif variable.path.endswith("moving_variance"):
            variable.assign(random.uniform(0.5, 2, variable.shape))
    return model


def _session(path: Path, image: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads,
        inter_op_parallelism_threads=threads,
        use_per_session_threads=True,
    )
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    with session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
    signature = meta_graph.signature_def["serving_default"]
    (fed,), (fetched,) = signature.inputs.values(), signature.outputs.values()
    run = session.make_callable(fetched.name, [fed.name])
    return lambda: run(image)


def _runtime(
    runtime: str, model: keras.Model, path: Path, image: np.ndarray, folder: Path
) -> Callable[[], np.ndarray]:
    if runtime == "LiteRT":
        return _litert(path, image)
    if runtime == "ONNX Runtime":
        return _onnx_runtime(model, image, folder / "model.onnx")
    return _openvino(path, image, "bf16" if runtime.endswith("bfloat16") else "f32")


def _litert(path: Path, image: np.ndarray) -> Callable[[], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    converted = tf.lite.TFLiteConverter.from_saved_model(str(path)).convert()
    interpreter = Interpreter(model_content=converted, num_threads=2)
    (fed,), (fetched,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.allocate_tensors()

    def run() -> np.ndarray:
        interpreter.set_tensor(fed["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(fetched["index"])

    return run


def _onnx_runtime(model: keras.Model, image: np.ndarray, file: Path) -> Callable[[], np.ndarray]:
    import onnxruntime
    import tf2onnx  # noqa: F401 - Keras needs it for the file

    model.export(file, format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: image})[0]


def _openvino(path: Path, image: np.ndarray, precision: str) -> Callable[[], np.ndarray]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([1, 224, 224, 3])
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": 2,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer([image])[0]


def _load(path: Path) -> tuple[float, float]:
    """Seconds and megabytes that a fresh process needs for a version."""
    command = [sys.executable, "-m", "benchmarks.loading", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = run.stdout.split()[-2:]
    return float(seconds), float(megabytes)


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


if __name__ == "__main__":
    started = time.perf_counter()
    main(sys.argv[1:] or list(NETWORKS))
    print(f"\n{time.perf_counter() - started:.0f} s in all.", file=sys.stderr)
