"""The interface of the transports of REST and gRPC, and of those for tests."""

from typing import Protocol

from keras_bn_serving.client.exchange import Codec, Exchange
from keras_bn_serving.wire.errors import FailedPreconditionError


def closed() -> FailedPreconditionError:
    """Return the error of a call on a client that is closed."""
    return FailedPreconditionError("this client is closed: make another, or close it later")


class Transport(Protocol):
    """Connections for threads, and the form that requests have on them."""

    codec: Codec

    def send(self, exchange: Exchange) -> bytes:
        """Return the body of the answer within the exchange's timeout, or raise a ServingError."""

    def close(self) -> None:
        """Close the connections; calls in flight fail."""


class AsyncTransport(Protocol):
    """Connections for one event loop, and the form that requests have on them."""

    codec: Codec

    async def send(self, exchange: Exchange) -> bytes:
        """Return the body of the answer within the exchange's timeout, or raise a ServingError."""

    def close(self) -> None:
        """Close the connections; calls in flight fail."""
