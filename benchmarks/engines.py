"""Networks over gRPC at batch size 1: Keras's export and ours, through each engine of the local server.

`python -m benchmarks.engines [network ...]` takes the names in `benchmarks.networks`. With
tensorflow_model_server on PATH, it is measured in the same run. All servers of a network are up at once and
take turns.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

import keras_bn
from benchmarks.networks import images, network
from benchmarks.servers import REAL, measured, over_grpc, resident_mib, start
from benchmarks.timing import interleaved, machine, table
from keras_bn.saving.session import signature_inputs
from keras_bn_serving.local_server import engines

IN_PROCESS = "in process"
NETWORKS = ("MobileNetV2", "ResNet50")
TEXT = """
One client, a 224x224x3 image as tensor_content over gRPC: milliseconds (median), how many times as fast as
Keras's export on TensorFlow at its better number of threads, and resident memory of the server in MiB. A
server is asked 16 times in its turn, of which the first four do not count. "In process" is OpenVINO alone, in
the process of the client: what it takes without gRPC.
"""


def main(names: Sequence[str]) -> None:
    rows = []
    for name in names:
        rows += _network(name)
        keras.backend.clear_session()
        gc.collect()
    print(machine())
    print(TEXT)
    print(table(["network", "server", "version", "ms", "times", "in process ms", "MiB"], rows))


def _network(name: str) -> list[list[str]]:
    model, image = network(name), images(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bases = {version: Path(folder) / version for version in ("Keras", "float32", "bfloat16")}
        model.export(bases["Keras"] / "1", verbose=False)
        for precision in ("float32", "bfloat16"):
            keras_bn.export(
                model, bases[precision], precision=precision, examples=images(4, seed=1), tolerance=0.2
            )
        keys = {version: next(iter(signature_inputs(base / "1"))) for version, base in bases.items()}
        servers, alone = {}, {}
        for server in measured():
            for version, base in bases.items():
                for count in (1, 2):
                    threads = {f"tensorflow_{kind}_op_parallelism": count for kind in ("intra", "inter")}
                    label = f"{REAL if server == REAL else 'local, TensorFlow'} {count}/{count}"
                    servers[label, version] = start(
                        stack, server, model_name="network", model_base_path=base, **threads
                    )
        if importlib.util.find_spec("openvino"):
            for precision in ("float32", "bfloat16"):
                key = f"local, OpenVINO {precision}", "float32"
                servers[key] = start(
                    stack,
                    "local",
                    model_name="network",
                    model_base_path=bases["float32"],
                    engine="openvino",
                    engine_precision=precision,
                )
                alone[key] = _in_process(stack, bases["float32"] / "1", precision, image)
        else:
            print("OpenVINO is left out; pip install 'keras-bn[bench]'.", file=sys.stderr)
        candidates = {
            (label, version): over_grpc(server.port, "network", image, keys[version])
            for (label, version), server in servers.items()
        }
        candidates |= {(IN_PROCESS, *key): run for key, run in alone.items()}
        seconds = interleaved(candidates, rounds=10, warmup=3, calls=16)
        memory = {label: resident_mib(server.pid) for label, server in servers.items()}
    base_seconds = min(seconds[key] for key in servers if key[1] == "Keras")
    return [
        [
            name,
            label,
            version if version == "Keras" else f"ours {version}",
            f"{1e3 * seconds[label, version]:.1f}",
            f"{base_seconds / seconds[label, version]:.2f}",
            f"{1e3 * seconds[IN_PROCESS, label, version]:.1f}" if (label, version) in alone else "",
            f"{memory[label, version]:.0f}",
        ]
        for label, version in servers
    ]


def _in_process(
    stack: contextlib.ExitStack, path: Path, precision: str, image: np.ndarray
) -> Callable[[], object]:
    engine = engines.load(str(path), engines.Options("openvino", precision))
    stack.callback(engine.close)
    signature = engine.signatures["serving_default"]
    (given,) = signature.inputs.values()
    outputs = [output.name for output in signature.outputs.values()]
    return lambda: engine.run({given.name: image}, outputs)


if __name__ == "__main__":
    main(sys.argv[1:] or NETWORKS)
