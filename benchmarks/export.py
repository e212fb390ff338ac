"""Exported networks at batch size 1: Keras's export, ours, and other runtimes.

`python -m benchmarks.export [network ...]` takes the names in `NETWORKS`. Each candidate of a network has a
process of its own, as in a server, and all of them take turns. `--results FILE` keeps the results of earlier
calls, so that the networks can be measured one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import keras_bn
from benchmarks import loading, runtimes
from benchmarks.candidate import Candidate, Failed, by_turns
from benchmarks.networks import KERAS_HUB, images, network
from benchmarks.timing import machine, table

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
Result = TypeVar("Result")
PEERS = ("ai-edge-litert", "onnxruntime", "tf2onnx", "openvino", "keras-hub")

LATENCIES = """
Milliseconds of one 224x224 image (median), and how many times as fast as Keras's export at its better
number of threads. TensorFlow has 1/1 and 2/2 intra-op/inter-op threads, the other runtimes have two threads.
"Fused" is `fused=True`, which only TensorFlow with oneDNN can read. Each candidate has a process of its own.
It runs 16 times in its turn, of which the first four do not count.
"""
SIZES = """
For TensorFlow, a fresh process that loads a version as TensorFlow Serving does, with two threads, and answers
once: seconds, and resident memory, both also relative to Keras's export. A process without a model has
{library:.0f} MB. For the other runtimes, a Python process that opens a file and answers once. Then megabytes
on disk, and the largest change of the outputs, relative to their scale. OpenVINO reads our version.
"""
COLUMNS = {
    f"{version} {count}/{count}": (version, count) for version in (KERAS, *OPTIONS) for count in THREADS
}


@dataclass
class Made:
    """A network on disk: versions by their names, files by their runtimes, and why other files are missing.

    `expected` are the model's outputs.
    """

    expected: np.ndarray
    versions: dict[str, Path] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def main(names: list[str], results: Path | None) -> None:
    found: dict[str, Any] = json.loads(results.read_text()) if results and results.exists() else {}
    for name in names:
        try:
            found[name] = measure(name)
        except ImportError as error:
            print(f"{name} is left out: {error}; pip install 'keras-bn[bench]'.", file=sys.stderr)
        if results:
            results.write_text(json.dumps(found))
    print(machine() + "".join(f", {name} {version}" for name, version in _versions().items()))
    measured = {name: found[name] for name in NETWORKS if name in found}
    print(LATENCIES)
    header = ["network", *COLUMNS, *runtimes.OTHERS]
    print(table(header, [_latency_row(name, result) for name, result in measured.items()]))
    library = max((result["library"] for result in measured.values()), default=0.0)
    print(SIZES.format(library=library))
    rows = [row for name, result in measured.items() for row in _size_rows(name, result)]
    print(table(["network", "version", "load s", "resident MB", "disk MB", "change"], rows))


def measure(name: str) -> dict[str, Any]:
    """The results of a network: seconds by candidate, what each costs to load, and which are absent."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image = folder / "image.npy"
        np.save(image, images(1))
        made = _apart(make, name, folder)
        for runtime in runtimes.CONVERTED:
            try:
                made.files[runtime] = _apart(convert, runtime, name, made.versions[OURS], folder)
            except ImportError as error:
                print(f"{runtime} is left out: {error}; pip install 'keras-bn[bench]'.", file=sys.stderr)
                made.absent[runtime] = f"missing: {error.name}"
            except Exception as error:
                print(f"{name} in {runtime}: {error}", file=sys.stderr)
                made.absent[runtime] = f"failed: {type(error).__name__}"
        result: dict[str, Any] = {"absent": made.absent, "library": 0.0, "costs": {}}
        with contextlib.ExitStack() as stack:
            candidates: dict[str, Candidate] = {}

            def add(key: str, runtime: str, file: Path, threads: int) -> None:
                try:
                    candidates[key] = stack.enter_context(
                        contextlib.closing(Candidate(runtime, file, threads, image))
                    )
                except Failed as error:
                    print(f"{key} of {name} is left out: {error}", file=sys.stderr)
                    made.absent[key] = str(error)

            for key, (version, threads) in COLUMNS.items():
                add(key, runtimes.TENSORFLOW, made.versions[version], threads)
            for runtime, file in made.files.items():
                add(runtime, runtime, file, max(THREADS))
            result["seconds"] = by_turns(candidates, rounds=6, calls=16)
        for runtime in candidates.keys() & made.files.keys():
            result["costs"][runtime] = {
                "load": candidates[runtime].load,
                "resident": candidates[runtime].resident,
                "disk": _disk(made.files[runtime]),
                "change": _change(candidates[runtime], made.expected),
            }
        program = loading.build(folder)
        for version, path in made.versions.items():
            loaded = program and loading.load(program, path)
            if loaded:
                result["library"] = loaded.library
            result["costs"][version] = {
                "load": loaded and loaded.seconds,
                "resident": loaded and loaded.resident,
                "disk": _disk(path),
                "change": _change(candidates[f"{version} 2/2"], made.expected),
            }
    return result


def make(name: str, folder: Path) -> Made:
    """Write the versions of a network into `folder`."""
    model = network(name)
    made = Made(model.predict(images(1), verbose=0))
    made.versions[KERAS] = folder / "keras"
    model.export(made.versions[KERAS], verbose=False)
    for version, options in OPTIONS.items():
        made.versions[version] = keras_bn.export(
            model, folder / "ours", examples=images(4, seed=1), tolerance=0.2, **options
        )
    made.files |= dict.fromkeys((runtimes.OPENVINO, runtimes.OPENVINO_NARROW), made.versions[OURS])
    return made


def convert(runtime: str, name: str, version: Path, folder: Path) -> Path:
    """The file that one of `runtimes.CONVERTED` opens: of `version`, or Keras's ONNX file of the network.

    Raises:
        ImportError: If a package is missing.
    """
    if runtime == runtimes.LITERT:
        import tensorflow as tf

        file = folder / "version.tflite"
        file.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(version)).convert())
        return file
    import tf2onnx  # noqa: F401 - Keras needs it for the file

    file, model = folder / "model.onnx", network(name)
    model(images(1))  # Keras refuses to write a model that was never called
    model.export(file, format="onnx", verbose=False)
    return file


def _apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function returns in a process that ends, as the candidates need the memory that it takes."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        return other.submit(function, *arguments).result()


def _change(candidate: Candidate, expected: np.ndarray) -> float:
    return float(np.abs(candidate.answer - expected).max() / np.abs(expected).max())


def _disk(path: Path) -> float:
    """Bytes of a file or a folder, in MB."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def _latency_row(name: str, result: dict[str, Any]) -> list[str]:
    seconds = result["seconds"]
    base = min(seconds[f"{KERAS} {count}/{count}"] for count in THREADS)
    return [
        name,
        *(
            f"{1e3 * seconds[key]:.1f} ({base / seconds[key]:.2f})"
            if key in seconds
            else result["absent"].get(key, "")
            for key in (*COLUMNS, *runtimes.OTHERS)
        ),
    ]


def _size_rows(name: str, result: dict[str, Any]) -> list[list[str]]:
    first = result["costs"][KERAS]

    def cell(label: str, key: str, digits: int) -> str:
        value = result["costs"][label][key]
        if value is None:
            return f"missing: {loading.COMPILER}"
        # Only TensorFlow's processes are alike.
        relative = f" ({value / first[key]:.2f})" if label not in runtimes.OTHERS else ""
        return f"{value:.{digits}f}{relative}"

    return [
        [
            name,
            label,
            cell(label, "load", 1),
            cell(label, "resident", 0),
            f"{result['costs'][label]['disk']:.1f}",
            f"{result['costs'][label]['change']:.1e}",
        ]
        for label in (KERAS, *OPTIONS, *runtimes.OTHERS)
        if label in result["costs"]
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
