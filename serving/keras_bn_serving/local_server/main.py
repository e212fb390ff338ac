"""The model server's process: `python -m keras_bn_serving.local_server` and `keras-bn-model-server`."""

import os
import sys

from keras_bn_serving.local_server import logs, requirements
from keras_bn_serving.wire.errors import ServingError


def main(arguments: list[str] | None = None) -> int:
    """Run the server until SIGTERM or SIGINT; the process's exit code."""
    logs.keep_standard_streams_open()
    try:
        requirements.check()
    except ServingError as error:
        print(error, file=sys.stderr)
        return 1
    # Errors only: TensorFlow writes a warning for a request that an operation refuses, and waits where stderr
    # is a pipe that is not read.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow imports Keras if it is there, for uses the server has none of: a second of its start.
    absent = "keras" not in sys.modules
    if absent:
        sys.modules["keras"] = None  # type: ignore[assignment]
    import tensorflow  # noqa: F401

    if absent:
        del sys.modules["keras"]
    from keras_bn_serving.local_server.server import run

    return run(sys.argv[1:] if arguments is None else arguments)
