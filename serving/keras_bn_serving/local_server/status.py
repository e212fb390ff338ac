"""Canonical status codes, and the one error type the server's parts raise."""

import logging

import grpc
from google.protobuf.message import DecodeError

# The codes' names in the order of their numbers, which gRPC and TensorFlow share.
CODES = [code.name for code in sorted(grpc.StatusCode, key=lambda code: code.value[0])]
_HTTP = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)
HTTP_STATUS = dict(zip(CODES, _HTTP, strict=True))
# What is raised where a request holds what cannot be: text that is no UTF-8, an integer beyond a double.
_REQUESTS_FAULT = (RecursionError, UnicodeError, OverflowError, DecodeError)


_log = logging.getLogger(__name__)


class StatusError(Exception):
    """An outcome other than OK: a canonical `code` (its name) and a `message` for the client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def invalid_argument(message: str) -> StatusError:
    """The error of a request that is wrong whatever the state of the server."""
    return StatusError("INVALID_ARGUMENT", message)


def require(good: object, message: str) -> None:
    """Raise INVALID_ARGUMENT with `message` unless `good`."""
    if not good:
        raise invalid_argument(message)


def from_exception(error: BaseException) -> StatusError:
    """`error` as a StatusError: TensorFlow's keep their code, the unforeseen becomes INTERNAL."""
    if isinstance(error, StatusError):
        return error
    code = getattr(error, "error_code", None)  # tf.errors.OpError, named without importing TensorFlow
    if isinstance(code, int):
        return StatusError(CODES[code], error.message)  # type: ignore[attr-defined]
    if isinstance(error, _REQUESTS_FAULT):
        return invalid_argument(f"{type(error).__name__}: {error}")
    _log.error("An error that nobody foresaw", exc_info=error)
    return StatusError("INTERNAL", f"{type(error).__name__}: {error}")
