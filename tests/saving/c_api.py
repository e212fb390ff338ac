"""Run requests of zeros against a SavedModel through TensorFlow's C API, as TensorFlow Serving does.

    python c_api.py FOLDER FEED FETCH DTYPE SHAPE [SHAPE ...]

prints a status code for each request. Python's own session refuses wrong shapes before the runtime sees them,
and a request that ends the runtime ends this process.
"""

import ctypes
import glob
import importlib.util
import math
import sys
from pathlib import Path

Pointer = ctypes.c_void_p
Integers = ctypes.POINTER(ctypes.c_int64)


class Port(ctypes.Structure):
    """TF_Output."""

    _fields_ = (("operation", Pointer), ("index", ctypes.c_int))


def library():
    package = Path(importlib.util.find_spec("tensorflow").submodule_search_locations[0])
    for name in ("libtensorflow_framework", "libtensorflow_cc"):
        (path,) = glob.glob(str(package / f"{name}.so.?"))
        loaded = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    return loaded


def main(folder, feed, fetch, dtype, *shapes):
    tensorflow = library()

    def call(name, returned, *arguments):
        function = getattr(tensorflow, name)
        function.restype = returned
        return function(*arguments)

    status, graph = call("TF_NewStatus", Pointer), call("TF_NewGraph", Pointer)
    status, graph = Pointer(status), Pointer(graph)
    options = Pointer(call("TF_NewSessionOptions", Pointer))
    tags = (ctypes.c_char_p * 1)(b"serve")
    load = "TF_LoadSessionFromSavedModel"
    session = call(load, Pointer, options, None, folder.encode(), tags, 1, graph, None, status)
    if code := call("TF_GetCode", ctypes.c_int, status):
        raise SystemExit(f"cannot be loaded: {code}")

    def port(tensor):
        name, _, index = tensor.partition(":")
        operation = call("TF_GraphOperationByName", Pointer, graph, name.encode())
        return Port(operation, int(index or 0))

    source, target = port(feed), port(fetch)
    for shape in shapes:
        sizes = [int(size) for size in shape.split("x") if size]
        length = 8 * math.prod(sizes)  # no numeric type is longer; a string is 24 bytes
        length = 3 * length if dtype == "7" else length
        dims = (ctypes.c_int64 * len(sizes))(*sizes)
        tensor = call("TF_AllocateTensor", Pointer, int(dtype), dims, len(sizes), ctypes.c_size_t(length))
        ctypes.memset(Pointer(call("TF_TensorData", Pointer, Pointer(tensor))), 0, length)
        inputs, outputs = (Pointer * 1)(tensor), (Pointer * 1)()
        feeds, fetches = ctypes.byref(source), ctypes.byref(target)
        arguments = (feeds, inputs, 1, fetches, outputs, 1, None, 0, None, status)
        call("TF_SessionRun", None, Pointer(session), None, *arguments)
        print(shape, call("TF_GetCode", ctypes.c_int, status), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
