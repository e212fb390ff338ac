"""A version of a model as the manager keeps it: loaded, warmed up, and run directly or in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from serving.local_server.executor import Executor
from serving.local_server.flags import Flags
from serving.local_server.manager import Version


@dataclasses.dataclass
class Loader:
    """Makes a Servable of a version's folder, as the flags say."""

    flags: Flags
    session_config: tf.compat.v1.ConfigProto

    def __call__(self, name: str, version: Version[Servable]) -> Servable:
        """Load a version.

        Raises:
            StatusError: the folder holds nothing that can be served.
        """
        executor = Executor(version.path, self.flags.saved_model_tags.split(","), self.session_config)
        return Servable(executor, self.flags.enable_signature_method_name_check)


class Servable:
    """A loaded model. Thread-safe."""

    def __init__(self, executor: Executor, check_methods: bool) -> None:
        self.check_methods = check_methods
        self.signatures = executor.signatures
        self._executor = executor

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """See Executor.run."""
        return self._executor.run(feeds, fetches, timeout_ms)

    def close(self) -> None:
        """Give the model's memory back."""
        self._executor.close()
