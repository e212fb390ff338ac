"""The engines that run models: one interface, a file for each engine, and the choice between them."""

from keras_bn_serving.local_server.engines.engine import Engine, Options
from keras_bn_serving.wire.errors import InvalidArgumentError

__all__ = ["ENGINES", "PRECISIONS", "Engine", "Options", "check", "load"]

ENGINES = ("tensorflow", "openvino")
PRECISIONS = ("float32", "bfloat16")


def check(options: Options) -> None:
    """Raise INVALID_ARGUMENT unless there is such an engine here, with such a precision."""
    if options.engine not in ENGINES:
        raise InvalidArgumentError(f"--engine must be one of {', '.join(ENGINES)}; got {options.engine}")
    if options.precision not in PRECISIONS:
        what = f"--engine_precision must be one of {', '.join(PRECISIONS)}"
        raise InvalidArgumentError(f"{what}; got {options.precision}")
    if options.engine == "tensorflow" and options.precision != "float32":
        raise InvalidArgumentError(f"--engine_precision={options.precision} needs --engine=openvino")
    if options.engine == "openvino":
        try:
            import openvino  # noqa: F401
        except ImportError as error:
            install = "pip install 'keras-bn-serving[server,openvino]'"
            raise InvalidArgumentError(f"--engine=openvino needs OpenVINO: {install}") from error


def load(path: str, options: Options) -> Engine:
    """Load the version in the folder `path`."""
    if options.engine == "openvino":
        from keras_bn_serving.local_server.engines.openvino import OpenVino

        return OpenVino(path, options)
    from keras_bn_serving.local_server.engines.tensorflow import TensorFlow

    return TensorFlow(path, options)
