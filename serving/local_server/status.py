"""Canonical status codes, and the one error type the server's parts raise."""

from __future__ import annotations

# The HTTP status of each code, in the order of the codes' numbers, shared by abseil, gRPC and TensorFlow.
HTTP_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
CODES = list(HTTP_STATUS)


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


def not_found(message: str) -> StatusError:
    """The error of a request that names something the server does not have."""
    return StatusError("NOT_FOUND", message)


def from_exception(error: BaseException) -> StatusError:
    """`error` as a StatusError: TensorFlow's errors keep their code, all others become INTERNAL."""
    if isinstance(error, StatusError):
        return error
    code = getattr(error, "error_code", None)  # tf.errors.OpError, named without importing TensorFlow
    if isinstance(code, int):
        return StatusError(CODES[code], error.message)  # type: ignore[attr-defined]
    return StatusError("INTERNAL", f"{type(error).__name__}: {error}")
