"""A version of a model as the manager keeps it: loaded, warmed up, and run directly or in batches."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

import tensorflow as tf

from serving.local_server import batching, config, metrics, warmup
from serving.local_server.config_messages import BatchingParameters
from serving.local_server.executor import Executor
from serving.local_server.flags import Flags
from serving.local_server.manager import Version
from serving.local_server.status import from_exception


class Servable:
    """A loaded model. Thread-safe."""

    def __init__(self, name: str, executor: Executor, check_methods: bool) -> None:
        self.name = name
        self.check_methods = check_methods
        self.signatures = executor.signatures
        self.run = executor.run
        self._parts: list[Executor | batching.Batcher] = [executor]

    def batch(self, parameters: batching.Parameters) -> None:
        """Run in batches from now on."""
        batcher = batching.Batcher(self.run, parameters)
        self._parts.append(batcher)
        self.run = batcher.run

    def close(self) -> None:
        """Give the model's memory and threads back."""
        while self._parts:
            self._parts.pop().close()


@dataclasses.dataclass
class Loader:
    """Makes a Servable of a version's folder, as the flags say."""

    flags: Flags
    session_config: tf.compat.v1.ConfigProto
    parameters: batching.Parameters | None

    def __call__(self, name: str, version: Version[Servable]) -> Servable:
        """Load a version and warm it up.

        Raises:
            StatusError: the folder holds nothing that can be served.
        """
        started, status = time.perf_counter(), "success"
        try:
            executor = Executor(version.path, self.flags.saved_model_tags.split(","), self.session_config)
        except Exception as error:
            status = from_exception(error).code
            raise
        finally:
            metrics.LOADS.add(version.path, status)
            metrics.LOAD_LATENCY.add(version.path, by=int((time.perf_counter() - started) * 1e6))
        with contextlib.ExitStack() as on_failure:
            servable = Servable(name, executor, self.flags.enable_signature_method_name_check)
            on_failure.callback(servable.close)
            parameters = self._batching(version.path)
            if parameters is not None:
                servable.batch(parameters)
            if self.flags.enable_model_warmup:
                warmup.run(servable, version.path, self.flags.num_request_iterations_for_warmup)
            on_failure.pop_all()
        return servable

    def _batching(self, path: str) -> batching.Parameters | None:
        """The batching parameters for a version, None if it is not to be batched."""
        if self.parameters is None or not self.flags.enable_per_model_batching_parameters:
            return self.parameters
        file = os.path.join(path, "batching_params.pbtxt")
        if not os.path.isfile(file):
            return None
        own = batching.Parameters.of(config.read(file, BatchingParameters()))
        return dataclasses.replace(own, num_batch_threads=self.parameters.num_batch_threads)
