"""Errors between a client and a model server: one class for each canonical status code.

The names and meanings of the codes are gRPC's (https://grpc.io/docs/guides/status-codes/). Over REST a
code is read back from the HTTP status, where TF Serving joins some of them: 400 stands for
INVALID_ARGUMENT, FAILED_PRECONDITION and OUT_OF_RANGE, 409 for ABORTED and ALREADY_EXISTS, 500 for
INTERNAL, UNKNOWN and DATA_LOSS.
"""


class ServingError(Exception):
    """An error between a client and a model server. There is a subclass for each status code.

    The message holds the server's own words where the server spoke.

    Attributes:
        code: the canonical name of the status.
        retry_after: the seconds after which an overloaded server asks to be tried again, if it says so.
    """

    code = "UNKNOWN"
    retry_after: float | None = None

    @property
    def status(self) -> str:
        """The name of the code, a colon and the message, as TF Serving writes them in its log."""
        return f"{self.code}: {self}"


class CancelledError(ServingError):
    """The call was cancelled."""

    code = "CANCELLED"


class InvalidArgumentError(ServingError):
    """The request is wrong, independently of the server's state. The client's own checks raise it too."""

    code = "INVALID_ARGUMENT"


class DeadlineExceededError(ServingError):
    """No answer within the timeout, here or on the server."""

    code = "DEADLINE_EXCEEDED"


class NotFoundError(ServingError):
    """No such model, version or label is loaded."""

    code = "NOT_FOUND"


class AlreadyExistsError(ServingError):
    """The object to create exists already."""

    code = "ALREADY_EXISTS"


class PermissionDeniedError(ServingError):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"


class ResourceExhaustedError(ServingError):
    """A limit was reached: of a queue, a quota or a message size."""

    code = "RESOURCE_EXHAUSTED"


class FailedPreconditionError(ServingError):
    """The server or the model is not in the state this request needs."""

    code = "FAILED_PRECONDITION"


class AbortedError(ServingError):
    """The call was aborted, usually because of a conflict with another."""

    code = "ABORTED"


class OutOfRangeError(ServingError):
    """A value lies outside the valid range."""

    code = "OUT_OF_RANGE"


class UnimplementedError(ServingError):
    """The server, or this transport, does not offer the call."""

    code = "UNIMPLEMENTED"


class InternalError(ServingError):
    """The server broke one of its own rules."""

    code = "INTERNAL"


class UnavailableError(ServingError):
    """There is no connection, or the server is overloaded or not up yet. Try again later."""

    code = "UNAVAILABLE"


class DataLossError(ServingError):
    """Data is corrupt beyond repair."""

    code = "DATA_LOSS"


class UnauthenticatedError(ServingError):
    """The credentials are missing or wrong."""

    code = "UNAUTHENTICATED"


_CLASSES: list[type[ServingError]] = [ServingError, *ServingError.__subclasses__()]
BY_CODE = {error.code: error for error in _CLASSES}


def with_code(code: str, message: str) -> ServingError:
    """Return an error of the class of a canonical code."""
    return BY_CODE[code](message)
