"""An exported network at batch size 1: `keras.Model.export`, `keras_bn.export`, and OpenVINO on the latter's
files.

`python -m benchmarks.export [network ...]` takes names of `keras.applications`. Every SavedModel runs in a
session through a prepared callable, as TensorFlow Serving runs it, and all of one network take turns.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.saved_model.loader_impl import SavedModelLoader

import keras_bn
from benchmarks.timing import interleaved, machine, pin_threads, table

KERAS = "keras export"
VARIANTS = ("keras_bn.export, fold=False", "keras_bn.export")
OPENVINO = "OpenVINO on keras_bn.export"


def main(names: list[str]) -> None:
    pin_threads()
    rows = [_row(name) for name in names]
    columns = (KERAS, *VARIANTS, OPENVINO)
    print(machine())
    print(
        "\nMilliseconds of one 224x224 image (median), and how many times as fast as the first; megabytes.\n"
    )
    print(
        table(
            ["network", *columns, *(f"MB, {name}" for name in (KERAS, VARIANTS[1])), "export, load (s)"], rows
        )
    )


def _row(name: str) -> list[str]:
    model = _network(name)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = {KERAS: Path(folder) / "keras"}
        model.export(paths[KERAS], verbose=False)
        for variant in VARIANTS:
            started = time.perf_counter()
            paths[variant] = keras_bn.export(model, Path(folder) / "ours", fold=variant == VARIANTS[1])
            export_seconds = time.perf_counter() - started
        candidates = {}
        for variant, path in paths.items():
            started = time.perf_counter()
            candidates[variant] = _session(path, image)
            candidates[variant]()  # the graph is optimized in the first call
            load_seconds = time.perf_counter() - started
        candidates[OPENVINO] = _openvino(paths[VARIANTS[1]], image)
        expected = model.predict(image, verbose=0)
        for variant, run in candidates.items():
            np.testing.assert_allclose(run(), expected, atol=1e-3 * np.abs(expected).max(), err_msg=variant)
        seconds = interleaved(candidates, rounds=40)
        sizes = [sum(file.stat().st_size for file in path.rglob("*.*")) / 1e6 for path in paths.values()]
    times = [f"{1e3 * s:.1f} ({seconds[KERAS] / s:.2f})" for s in seconds.values()]
    megabytes = [f"{sizes[0]:.1f}", f"{sizes[-1]:.1f} ({sizes[-1] / sizes[0]:.2f})"]
    return [name, *times, *megabytes, f"{export_seconds:.1f}, {load_seconds:.1f}"]


def _network(name: str) -> keras.Model:
    """Random weights, which cost the same as trained ones, with population statistics that are not 0 and
    1."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(random.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(random.uniform(0.5, 2, layer.moving_variance.shape))
    return model


def _session(path: Path, image: np.ndarray) -> Callable[[], np.ndarray]:
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta_graph = SavedModelLoader(str(path)).load(session, ["serve"])
    signature = meta_graph.signature_def["serving_default"]
    (fed,), (fetched,) = signature.inputs.values(), signature.outputs.values()
    options = config_pb2.CallableOptions(feed=[fed.name], fetch=[fetched.name])
    run = session._make_callable_from_options(options)
    return lambda: run(image)[0]


def _openvino(path: Path, image: np.ndarray) -> Callable[[], np.ndarray]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([1, 224, 224, 3])
    # Left to itself it computes in bfloat16 where the processor can, and is off in the third digit.
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer([image])[0]


if __name__ == "__main__":
    main(sys.argv[1:] or ["MobileNetV2", "ResNet50"])
