"""The interface of an engine."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2


@dataclasses.dataclass(frozen=True)
class Options:
    """How versions are loaded.

    Attributes:
        engine: the name of the engine.
        precision: that of convolutions and matrix products, "float32" or "bfloat16".
        tags: the whole set of tags of the graph to load.
        session: a tensorflow.ConfigProto, or None.
    """

    engine: str = "tensorflow"
    precision: str = "float32"
    tags: Sequence[str] = ("serve",)
    session: Any = None


class Engine(Protocol):
    """A loaded version that computes tensors by name. Thread-safe."""

    @property
    def signatures(self) -> Mapping[str, meta_graph_pb2.SignatureDef]:
        """The signatures of the version by key."""

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """The values of the tensors named in `fetches` (`y:0`), given those in `feeds`.

        After `timeout_ms` milliseconds, unless it is 0, the run is cancelled: DEADLINE_EXCEEDED.
        """

    def close(self) -> None:
        """Give the version's memory back."""
