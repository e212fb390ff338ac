"""Where the time goes in exported networks: share of each kind of operation, in Keras's export and in ours.

`python -m benchmarks.profile_operations [network ...]` takes names of `keras.applications` and prints a
Markdown table. `--results FILE` keeps the results of earlier calls, so that the networks can be measured one
by one. One 224x224 image is run at a time and one operation after the other, so that their times add up. The
graph is run as TensorFlow Serving runs it: a version's `saved_model_config.pb` is heeded.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import keras
import numpy as np
import tensorflow as tf

import keras_bn
from benchmarks.networks import images, network, session
from benchmarks.timing import machine, pin_threads, table

NETWORKS = (
    "MobileNetV2",
    "ResNet50",
    "EfficientNetB0",
    "VGG16",
    "InceptionV3",
    "Xception",
    "DenseNet121",
    "MobileNetV3Large",
    "ResNet50V2",
    "ConvNeXtTiny",
)
TEXT = """
Milliseconds of one 224x224 image, one operation after the other on two threads, and the share of each kind
of operation in percent. A convolution or matrix product includes what TensorFlow fuses into it. The others
are passes over memory of their own. "Moved" is what only moves data: variables that are read, reshaped, cast
or copied tensors.
"""
# The first kind whose words occur in the name of an operation.
KINDS: dict[str, tuple[str, ...]] = {
    "convolutions": ("Conv",),
    "matrix products": ("MatMul",),
    "normalization": ("Norm", "Rsqrt", "SquaredDifference"),
    "pooling and means": ("Pool", "Mean", "Sum"),
    "activations": ("Relu", "Elu", "Selu", "Swish", "Sigmoid", "Tanh", "Softmax", "Erf", "Gelu", "Maximum"),
    "multiply-adds": ("Mul", "Add", "Sub", "Div", "Unary", "Binary"),
    "padding": ("Pad",),
    "concatenation": ("Concat",),
    "moved": ("",),
}
_RUNS = 10


def operations(run: tf.compat.v1.Session, fed: str, fetched: str, value: np.ndarray) -> Counter[str]:
    """Seconds per run (median) of each operation of a graph, by the name of its kernel."""
    options = tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.SOFTWARE_TRACE)
    for _ in range(3):
        run.run(fetched, {fed: value})
    runs: list[Counter[str]] = []
    for _ in range(_RUNS):
        metadata = tf.compat.v1.RunMetadata()
        run.run(fetched, {fed: value}, options=options, run_metadata=metadata)
        seconds: Counter[str] = Counter()
        for device in metadata.step_stats.dev_stats:
            for node in device.node_stats:
                # "name = Kernel(inputs)"
                kernel = node.timeline_label.partition(" = ")[2].partition("(")[0]
                seconds[kernel] += (node.op_end_rel_nanos - node.op_start_rel_nanos) / 1e9
        runs.append(seconds)
    # An interruption of the process falls into one run of one operation.
    return Counter({kernel: median(each[kernel] for each in runs) for kernel in runs[0]})


def by_kind(seconds: Counter[str]) -> Counter[str]:
    """The same by kind of operation."""
    found: Counter[str] = Counter()
    for kernel, taken in seconds.items():
        kind = next(kind for kind, words in KINDS.items() if any(word in kernel for word in words))
        found[kind] += taken
    return found


def profiled(path: Path, value: np.ndarray) -> Counter[str]:
    """Seconds per run of each operation of a version."""
    # One thread starts operations. Those that they run on are the process's, of which there are two here.
    opened, fed, fetched = session(path, threads=1)
    with opened:
        return operations(opened, fed, fetched, value)


def rows(name: str) -> list[list[str]]:
    """The rows of a network."""
    model = network(name)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        theirs = Path(folder) / "keras"
        model.export(theirs, verbose=False)
        versions = {"Keras": theirs}
        for version, precision in (("ours", "float32"), ("ours bfloat16", "bfloat16")):
            versions[version] = keras_bn.export(
                model, Path(folder) / "ours", precision=precision, examples=images(2), tolerance=1.0
            )
        for version, path in versions.items():
            kernels = profiled(path, images(1))
            kinds, total = by_kind(kernels), kernels.total()
            largest = ", ".join(
                f"{kernel} {100 * taken / total:.1f}" for kernel, taken in kernels.most_common(9)
            )
            print(f"{name}, {version}, percent of {1e3 * total:.1f} ms: {largest}", file=sys.stderr)
            shares = [f"{100 * kinds[kind] / total:.0f}" for kind in KINDS]
            found.append([name, version, f"{1e3 * total:.1f}", *shares])
    return found


def main(names: Sequence[str], results: Path | None) -> None:
    pin_threads()
    found: dict[str, list[list[str]]] = (
        json.loads(results.read_text()) if results and results.exists() else {}
    )
    for name in names:
        found[name] = rows(name)
        if results:
            results.write_text(json.dumps(found))
        keras.backend.clear_session()
        gc.collect()
    print(machine())
    print(TEXT)
    measured = [row for name in (*NETWORKS, *names) for row in found.pop(name, [])]
    print(table(["network", "version", "ms", *KINDS], measured))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help=f"by default {', '.join(NETWORKS)}")
    parser.add_argument("--results", type=Path, help="JSON file that keeps results from one call to the next")
    arguments = parser.parse_args()
    main(arguments.networks or NETWORKS, arguments.results)
