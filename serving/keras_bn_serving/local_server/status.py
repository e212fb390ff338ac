"""The errors of the server: those of `wire`, and any other exception as one of them."""

import logging

from google.protobuf.message import DecodeError

from keras_bn_serving.wire.errors import InternalError, InvalidArgumentError, ServingError, with_code
from keras_bn_serving.wire.status import CODES

# Errors caused by invalid values in a request: text that is not UTF-8, an integer beyond a double.
_REQUESTS_FAULT = (RecursionError, UnicodeError, OverflowError, DecodeError)

_log = logging.getLogger(__name__)


def from_exception(error: BaseException) -> ServingError:
    """`error` as a ServingError: TensorFlow's keep their code, the unforeseen becomes INTERNAL."""
    if isinstance(error, ServingError):
        return error
    code = getattr(error, "error_code", None)  # tf.errors.OpError, named without importing TensorFlow
    if isinstance(code, int):
        return with_code(CODES[code], error.message)  # type: ignore[attr-defined]
    if isinstance(error, _REQUESTS_FAULT):
        return InvalidArgumentError(f"{type(error).__name__}: {error}")
    _log.error("Unhandled exception", exc_info=error)
    return InternalError(f"{type(error).__name__}: {error}")
