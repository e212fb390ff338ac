"""The packages that the server needs in addition to the client's: the extra `server`."""

from importlib.util import find_spec

from keras_bn_serving.wire.errors import ServingError

_MODULES = ("tensorflow", "tensorflow_serving", "httptools", "simdjson", "grpc_health", "grpc_reflection")


def check() -> None:
    """Raise a ServingError that says what to install unless all of it is here."""
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        install = "pip install 'keras-bn-serving[server]'"
        raise ServingError(f"The local model server needs {', '.join(missing)}: {install}")
