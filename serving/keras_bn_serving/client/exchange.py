"""The steps of an operation of the client: one request with the way to read its answer, and a pause.

The client is written once for threads and asyncio: an operation is a generator that yields these steps
and is sent their results; `Client` and `AsyncClient` differ only in who carries the steps out (`carriers`).
"""

import os
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from keras_bn_serving.client.metadata import Signature
from keras_bn_serving.wire.errors import InternalError, ServingError

T = TypeVar("T")
Features = Mapping[str, Any]


class Message(Protocol):
    """A message of protobuf."""

    def SerializeToString(self) -> bytes:
        """Its bytes."""


# A models.config file, its content as a dict, or a ModelServerConfig message.
Configuration: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Message


@dataclass(frozen=True)
class Exchange:
    """One request; `read` turns the body of a good answer into the result."""

    path: str
    body: bytes | None
    read: Callable[[bytes], Any]
    timeout: float = 0.0
    idempotent: bool = True
    hint: str = ""  # what may be behind a refusal of the request

    def result(self, body: bytes) -> Any:
        """Return what the answer says; InternalError if it is not TF Serving's kind of answer."""
        try:
            return self.read(body)
        except ServingError:
            raise
        except Exception as error:  # whatever the server may have sent
            raise InternalError(f"the answer cannot be read ({error!r}); it begins {body[:200]!r}") from error


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Shared:
    """Do an operation once for all who ask for it at the same time; its result is theirs as well."""

    key: Hashable
    operation: "Callable[[], Operation[Any]]"
    deadline: float  # of time.monotonic


Operation = Generator[Exchange | Pause | Shared, Any, T]


@dataclass(frozen=True)
class Target:
    """Which model is spoken to; `version` and `label` exclude each other; neither means the newest."""

    model: str
    version: int | None = None
    label: str | None = None


class Codec(Protocol):
    """The calls of TF Serving in the words of one transport."""

    def predict(
        self,
        target: Target,
        name: str | None,
        signature: Signature,
        inputs: dict[str, np.ndarray],
        outputs: Sequence[str],
    ) -> Exchange:
        """Exchange whose result is the outputs asked for (all, if none is named) by name."""

    def examples(
        self,
        method: str,
        target: Target,
        name: str | None,
        examples: Sequence[Features],
        context: Features | None,
    ) -> Exchange:
        """Exchange for "classify" or "regress": lists of (label, score), or an array of numbers."""

    def status(self, target: Target) -> Exchange:
        """Exchange whose result is a list of VersionStatus."""

    def metadata(self, target: Target) -> Exchange:
        """Exchange whose result is a ModelMetadata."""

    def reload(self, config: Configuration) -> Exchange:
        """Exchange that makes the server adopt a ModelServerConfig; its result is None."""
