"""Exported networks at batch size 1: Keras's export, ours, and other runtimes.

`python -m benchmarks.export [network ...]` takes the names in `NETWORKS`. All candidates of a network take
turns in one run. Load time and memory are those of a fresh process that does what TensorFlow Serving does.
`--results FILE` keeps the results of earlier calls, so that the networks can be measured one by one.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_bn
from benchmarks import loading, runtimes
from benchmarks.networks import KERAS_HUB, images, network, runs
from benchmarks.timing import interleaved, machine, table

NETWORKS = ("MobileNetV2", "ResNet50", "EfficientNetB0", "VGG16", "ConvNeXtTiny", KERAS_HUB)
KERAS, OURS, FUSED = "Keras", "ours", "ours fused"
NARROW, NARROW_FUSED = "ours bfloat16", "ours bfloat16 fused"
OPTIONS: dict[str, dict[str, Any]] = {
    OURS: {},
    FUSED: {"fused": True},
    NARROW: {"precision": "bfloat16"},
    NARROW_FUSED: {"precision": "bfloat16", "fused": True},
}
THREADS = (1, 2)
PEERS = ("ai-edge-litert", "onnxruntime", "tf2onnx", "openvino", "keras-hub")

LATENCIES = """
Milliseconds of one 224x224 image (median), and how many times as fast as Keras's export at its better
number of threads. TensorFlow has 1/1 and 2/2 intra-op/inter-op threads, the other runtimes have two threads.
"Fused" is `fused=True`, which only TensorFlow with oneDNN can read. A candidate runs 16 times in its turn, of
which the first four do not count.
"""
SIZES = """
A fresh process that loads a version as TensorFlow Serving does, with two threads, and answers once: seconds,
and resident memory, both also relative to Keras's export. A process without a model has {library:.0f} MB.
Then megabytes on disk, and the largest change of the outputs, relative to their scale.
"""
COLUMNS = [f"{version} {count}/{count}" for version in (KERAS, *OPTIONS) for count in THREADS]


def main(names: list[str], results: Path | None) -> None:
    found: dict[str, Any] = json.loads(results.read_text()) if results and results.exists() else {}
    for name in names:
        try:
            found[name] = measure(name)
        except ImportError as error:
            print(f"{name} is left out: {error}; pip install 'keras-bn[bench]'.", file=sys.stderr)
        if results:
            results.write_text(json.dumps(found))
        keras.backend.clear_session()
        gc.collect()
    print(machine() + "".join(f", {name} {version}" for name, version in _versions().items()))
    measured = {name: found[name] for name in NETWORKS if name in found}
    print(LATENCIES)
    header = ["network", *COLUMNS, *runtimes.NAMES]
    print(table(header, [_latency_row(name, result) for name, result in measured.items()]))
    library = max((result["library"] for result in measured.values()), default=0.0)
    print(SIZES.format(library=library))
    rows = [row for name, result in measured.items() for row in _size_rows(name, result)]
    print(table(["network", "version", "load s", "resident MB", "disk MB", "change"], rows))


def measure(name: str) -> dict[str, Any]:
    """The results of a network: seconds by candidate, and what each version costs to load."""
    model, image = network(name), images(1)
    expected = model.predict(image, verbose=0)
    result: dict[str, Any] = {"absent": {}, "library": 0.0, "versions": {}}
    with tempfile.TemporaryDirectory() as folder:
        # What an export leaves in memory would slow down the others.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            paths = other.submit(exported, name, Path(folder)).result()
        candidates = {
            f"{version} {count}/{count}": runs(path, image, count)
            for version, path in paths.items()
            for count in THREADS
        }
        for runtime in runtimes.NAMES:
            try:
                run = runtimes.open_runtime(runtime, model, paths[OURS], image, Path(folder))
                run()
                candidates[runtime] = run
            except ImportError as error:
                print(f"{runtime} is left out: {error}; pip install 'keras-bn[bench]'.", file=sys.stderr)
                result["absent"][runtime] = f"missing: {error.name}"
            except Exception as error:
                print(f"{name} in {runtime}: {error}", file=sys.stderr)
                result["absent"][runtime] = f"failed: {type(error).__name__}"
        changes = {
            key: float(np.abs(run() - expected).max() / np.abs(expected).max())
            for key, run in candidates.items()
        }
        result["seconds"] = interleaved(candidates, rounds=5, warmup=2, calls=16)
        candidates.clear()
        program = loading.build(Path(folder))
        for version, path in paths.items():
            loaded = program and loading.load(program, path)
            if loaded:
                result["library"] = loaded.library
            result["versions"][version] = {
                "load": loaded and loaded.seconds,
                "resident": loaded and loaded.resident,
                "disk": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
                "change": changes[f"{version} 2/2"],
            }
    return result


def exported(name: str, folder: Path) -> dict[str, Path]:
    """The versions of a network in `folder`, by their names."""
    model = network(name)
    paths = {KERAS: folder / "keras"}
    model.export(paths[KERAS], verbose=False)
    for version, options in OPTIONS.items():
        paths[version] = keras_bn.export(
            model, folder / "ours", examples=images(4, seed=1), tolerance=0.2, **options
        )
    return paths


def _latency_row(name: str, result: dict[str, Any]) -> list[str]:
    seconds = result["seconds"]
    base = min(seconds[f"{KERAS} {count}/{count}"] for count in THREADS)
    return [
        name,
        *(
            f"{1e3 * seconds[key]:.1f} ({base / seconds[key]:.2f})"
            if key in seconds
            else result["absent"].get(key, "")
            for key in (*COLUMNS, *runtimes.NAMES)
        ),
    ]


def _size_rows(name: str, result: dict[str, Any]) -> list[list[str]]:
    first = result["versions"][KERAS]

    def relative(version: dict[str, Any], key: str, digits: int) -> str:
        if version[key] is None:
            return f"missing: {loading.COMPILER}"
        return f"{version[key]:.{digits}f} ({version[key] / first[key]:.2f})"

    return [
        [
            name,
            label,
            relative(version, "load", 1),
            relative(version, "resident", 0),
            f"{version['disk'] / 1e6:.1f}",
            f"{version['change']:.1e}",
        ]
        for label, version in result["versions"].items()
    ]


def _versions() -> dict[str, str]:
    found = {}
    for name in PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help=f"any of {', '.join(NETWORKS)}; all of them by default")
    parser.add_argument("--results", type=Path, help="JSON file that keeps results from one call to the next")
    arguments = parser.parse_args()
    started = time.perf_counter()
    main(arguments.networks or list(NETWORKS), arguments.results)
    print(f"\n{time.perf_counter() - started:.0f} s in all.", file=sys.stderr)
