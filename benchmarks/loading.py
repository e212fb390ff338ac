"""`python -m benchmarks.loading VERSION` loads a SavedModel through TensorFlow's C API, as TensorFlow
Serving does.

Prints the seconds until it has answered a first image of zeros, and the megabytes by which the process grew.
A version's `assets.extra/saved_model_config.pb` is heeded as a server heeds it.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

Pointer = ctypes.c_void_p
# ConfigProto: intra- and inter-op threads 2; graph_options { rewrite_options { disable_meta_optimizer } }
_THREADS = bytes([0x10, 2, 0x28, 2])
_NO_OPTIMIZER = bytes([0x52, 5, 0x52, 3, 0x98, 0x01, 1])


class Port(ctypes.Structure):
    """TF_Output."""

    _fields_ = (("operation", Pointer), ("index", ctypes.c_int))


def _signature(path: Path) -> tuple[str, str]:
    """The names of the input and output tensor, read in another process so that this one stays small."""
    import subprocess

    code = (
        "import sys; from tensorflow.core.protobuf import saved_model_pb2 as p;"
        "m = p.SavedModel.FromString(open(sys.argv[1], 'rb').read()).meta_graphs[0];"
        "s = m.signature_def['serving_default'];"
        "print(*[i.name for i in s.inputs.values()], *[o.name for o in s.outputs.values()])"
    )
    command = [sys.executable, "-c", code, str(path / "saved_model.pb")]
    fed, fetched = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
    return fed, fetched


def _resident() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))


def main(path: Path, shape: tuple[int, ...] = (1, 224, 224, 3)) -> None:
    fed, fetched = _signature(path)
    package = Path(importlib.util.find_spec("tensorflow").submodule_search_locations[0])
    for name in ("libtensorflow_framework", "libtensorflow_cc"):
        library = ctypes.CDLL(glob.glob(str(package / f"{name}.so.?"))[0], mode=ctypes.RTLD_GLOBAL)

    def call(name: str, returned: Any, *arguments: Any) -> Any:
        function = getattr(library, name)
        function.restype = returned
        return function(*arguments)

    status, graph = Pointer(call("TF_NewStatus", Pointer)), Pointer(call("TF_NewGraph", Pointer))
    options = Pointer(call("TF_NewSessionOptions", Pointer))
    config = _THREADS
    if (path / "assets.extra" / "saved_model_config.pb").exists():
        config += _NO_OPTIMIZER
    call("TF_SetConfig", None, options, config, ctypes.c_size_t(len(config)), status)
    before, started = _resident(), time.perf_counter()
    tags = (ctypes.c_char_p * 1)(b"serve")
    folder = str(path).encode()
    load = "TF_LoadSessionFromSavedModel"
    session = Pointer(call(load, Pointer, options, None, folder, tags, 1, graph, None, status))

    def port(tensor: str) -> Port:
        name, _, index = tensor.partition(":")
        return Port(call("TF_GraphOperationByName", Pointer, graph, name.encode()), int(index or 0))

    size = 4
    for length in shape:
        size *= length
    dims = (ctypes.c_int64 * len(shape))(*shape)
    tensor = call("TF_AllocateTensor", Pointer, 1, dims, len(shape), ctypes.c_size_t(size))
    ctypes.memset(Pointer(call("TF_TensorData", Pointer, Pointer(tensor))), 0, size)
    inputs, outputs = (Pointer * 1)(tensor), (Pointer * 1)()
    source, target = port(fed), port(fetched)
    feeds, fetches = ctypes.byref(source), ctypes.byref(target)
    arguments = (feeds, inputs, 1, fetches, outputs, 1, None, 0, None, status)
    call("TF_SessionRun", None, session, None, *arguments)
    if code := call("TF_GetCode", ctypes.c_int, status):
        raise SystemExit(f"{path} was not run: code {code}")
    print(time.perf_counter() - started, _resident() - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
