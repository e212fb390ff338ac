"""What is to be served: the current configuration, followed as its file and the models' folders change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from tensorflow_serving.config import model_server_config_pb2

from serving.local_server import config as configuration
from serving.local_server import storage
from serving.local_server.manager import Manager, Version
from serving.local_server.status import StatusError, invalid_argument

_log = logging.getLogger(__name__)


class Catalog:
    """Tells the manager which versions are wanted: on every reload, and whenever the folders have changed.

    Args:
        manager: what loads the versions.
        poll_seconds: time between two looks at the folders; 0: one look at each configuration; negative:
            none.
        refuse_empty: whether a new model without any version is an error instead of something to wait for.
        stopped: once set, nothing is waited for or followed any more.
    """

    def __init__(
        self,
        manager: Manager[Any],
        poll_seconds: float = 1.0,
        refuse_empty: bool = False,
        stopped: threading.Event | None = None,
    ) -> None:
        self._manager = manager
        self._poll_seconds = poll_seconds
        self._refuse_empty = refuse_empty
        self._models: configuration.Models = {}
        self._polling = threading.Lock()
        self._reloading = threading.Lock()
        self._stopped = stopped or threading.Event()
        self._following = False

    def start(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Take up the first configuration, return when its models are up, and follow their folders from then
        on.

        Raises:
            StatusError: the configuration is not in order, or a model could not be loaded.
        """
        if config.WhichOneof("config") is None:
            _log.info("Taking no action for empty config.")
        self._apply(config, "servable(s)")

    def reload(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Put `config` in the place of the current configuration; return when the models new in it are up.

        Raises:
            StatusError: the configuration is refused and nothing has changed, or a new model could not be
                loaded.
        """
        self._apply(config, "model(s)")

    def follow_file(self, path: str, seconds: float) -> None:
        """Read the configuration file again and again, from now on, and reload what it says."""

        def step() -> None:
            try:
                config = configuration.read(path, model_server_config_pb2.ModelServerConfig())
            except StatusError as error:
                _log.error("Failed to read ModelServerConfig file: %s", error)
                return
            try:
                self.reload(config)
            except StatusError as error:
                _log.error("PollFilesystemAndReloadConfig failed to ReloadConfig: %s", error)

        self._repeat(step, seconds, "config file")

    def close(self) -> None:
        """Follow nothing any more."""
        self._stopped.set()

    def _apply(self, config: model_server_config_pb2.ModelServerConfig, what: str) -> None:
        with self._reloading:
            models = configuration.models(config, self._models)
            self._manager.label({name: dict(model.version_labels) for name, model in models.items()})
            new = [name for name in models if name not in self._models]
            self._models = models
            if self._poll_seconds >= 0:
                self._poll(fail=self._refuse_empty)
            if self._poll_seconds > 0 and not self._following:
                self._following = True
                self._repeat(self._poll, self._poll_seconds, "folders")
            failed = self._manager.wait(new, self._stopped.is_set)
            if failed:
                raise StatusError("UNKNOWN", _names(failed, what))
            if any(model.HasField("logging_config") for model in models.values()):
                raise invalid_argument("No request-logger-creator provided.")

    def _poll(self, fail: bool = False) -> None:
        with self._polling:
            wanted: dict[str, dict[int, str]] = {}
            for name, model in self._models.items():
                try:
                    wanted[name] = storage.versions(model)
                except OSError as error:
                    message = (
                        f"Could not find base path {model.base_path} for servable {name} with error {error}"
                    )
                    if fail:
                        raise StatusError("NOT_FOUND", message) from error
                    _log.error(
                        "FileSystemStoragePathSource encountered a filesystem access error: %s", message
                    )
                    return  # one unreadable folder changes nothing for any model: a mount may be away
                if fail and not wanted[name]:
                    raise StatusError(
                        "NOT_FOUND", f"No versions of servable {name} found under {model.base_path}"
                    )
            self._manager.want(wanted)

    def _repeat(self, step: Callable[[], None], seconds: float, name: str) -> None:
        def run() -> None:
            while not self._stopped.wait(seconds):
                try:
                    step()
                # Whatever a round stumbles over, what is served stays served and the next round may succeed.
                except Exception:
                    _log.exception("Following the %s failed; it goes on.", name)

        threading.Thread(target=run, name=name, daemon=True).start()


def _names(failed: list[tuple[str, Version[Any]]], what: str) -> str:
    errors = "".join(
        f"{{{{name: {name} version: {version.number}}} due to error: {version.error}}}, "
        for name, version in failed
    )
    return f"{len(failed)} {what} did not become available: {{{errors}}}"
