"""The models to serve: configuration files and the folders in them, followed as they change."""

import contextlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from keras_bn_serving.local_server.flags import Flags
from keras_bn_serving.local_server.manager import Manager
from keras_bn_serving.local_server.status import from_exception
from keras_bn_serving.wire.errors import (
    AbortedError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ServingError,
)
from keras_bn_serving.wire.messages import MESSAGES
from keras_bn_serving.wire.versions import version_number

Proto = TypeVar("Proto", bound=Message)
ModelServerConfig: TypeAlias = model_server_config_pb2.ModelServerConfig
Models = dict[str, model_server_config_pb2.ModelConfig]
ONLY_LISTS = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
    "Only ModelConfigList is currently supported"
)
_log = logging.getLogger(__name__)

BatchingParameters, SSLConfig, MonitoringConfig = (
    MESSAGES[name] for name in ("BatchingParameters", "SSLConfig", "MonitoringConfig")
)


def read(path: str, proto: Proto) -> Proto:
    """`proto`, filled from the text file at `path`; NOT_FOUND or INVALID_ARGUMENT if that cannot be."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise NotFoundError(f"{path}; {error.strerror}") from None
    if not text:
        raise InvalidArgumentError(f"{path}; Invalid argument")
    try:
        return text_format.Parse(text, proto)
    except text_format.ParseError as error:
        _log.error("Error parsing text-format %s: %s", proto.DESCRIPTOR.full_name, error)
        raise InvalidArgumentError(f"Invalid protobuf file: '{path}'") from None


def check(config: ModelServerConfig) -> Models:
    """The model configurations by name, once they are found in order."""
    if config.WhichOneof("config") == "custom_model_config":
        raise InvalidArgumentError(ONLY_LISTS)
    result: Models = {}
    for model in config.model_config_list.config:
        name, path, platform = model.name, model.base_path, model.model_platform
        if name in result:
            raise InvalidArgumentError(f"Illegal to list model {name} multiple times in config list")
        if not re.match(r"/|[A-Za-z][\w+.-]*://", path):
            what = f"Expected model {name} to have an absolute path or URI; got base_path()={path}"
            raise InvalidArgumentError(what)
        if bool(model.model_type) == bool(platform):
            word = "both" if platform else "neither"
            what = f"Illegal setting {word} model_type (deprecated) and model_platform, model name is {name}"
            raise InvalidArgumentError(what)
        if platform != "tensorflow" and model.model_type != model_server_config_pb2.TENSORFLOW:
            raise InvalidArgumentError(f"Model {name} requests unsupported platform {platform}")
        if model.HasField("logging_config"):
            raise InvalidArgumentError("No request-logger-creator provided.")
        result[name] = model
    return result


class Catalog:
    """Tells the manager which versions are wanted: on every reload, and whenever the folders have changed.

    Once `stopped` is set, nothing is waited for or followed any more.
    """

    def __init__(self, manager: Manager, flags: Flags, stopped: threading.Event) -> None:
        self._manager = manager
        self._poll_seconds = flags.file_system_poll_wait_seconds
        self._refuse_empty = flags.fail_if_no_model_versions_found
        self._models: Models = {}
        self._polling = threading.Lock()
        self._reloading = threading.Lock()
        self._reloads = 0
        self._stopped = stopped

    def start(self, models: ModelServerConfig) -> None:
        """Take up the first configuration, and follow its models' folders from then on."""
        if self._poll_seconds > 0:
            self._repeat(self._poll, self._poll_seconds, "folders")
        self.reload(models, "servable(s)")

    def reload(self, models: ModelServerConfig, what: str = "model(s)", seconds: float = math.inf) -> None:
        """Put `models` in the place of the current configuration; return when the models new in it are up.

        An error if it is refused, and nothing has changed, or a new model (a `what`) could not be loaded. One
        whose folder is not there may be waited for without end: at most for `seconds`, and until the next
        reload takes the place of this one.
        """
        deadline = time.monotonic() + seconds
        with self._reloading:
            self._reloads += 1
            number = self._reloads
            checked = check(models)
            self._manager.label({name: dict(model.version_labels) for name, model in checked.items()})
            new = [name for name in checked if name not in self._models]
            self._models = checked
            if self._poll_seconds >= 0:
                self._poll(fail=self._refuse_empty)

        def given_up() -> bool:
            return self._stopped.is_set() or self._reloads != number or time.monotonic() > deadline

        failed = self._manager.wait(new, given_up)
        if self._reloads != number:
            raise AbortedError("Another configuration took the place of this one before its models were up.")
        if time.monotonic() > deadline:
            raise DeadlineExceededError("The models of this configuration are not up yet.")
        if failed:
            each = "{{name: %s version: %d} due to error: %s}, "
            errors = "".join(
                each % (name, version.number, version.error and version.error.status)
                for name, version in failed
            )
            raise ServingError(f"{len(failed)} {what} did not become available: {{{errors}}}")

    def follow_file(self, path: str, seconds: float) -> None:
        """Read the configuration file again and again, from now on, and reload what it says."""

        def reload() -> None:
            # What is not up by the next round is loaded all the same; a wait would keep later edits out.
            with contextlib.suppress(AbortedError, DeadlineExceededError):
                self.reload(read(path, ModelServerConfig()), seconds=seconds)

        self._repeat(reload, seconds, "config file")

    def _poll(self, fail: bool = False) -> None:
        """Want what the folders hold; one that is missing changes nothing: a mount may be away."""
        with self._polling:
            wanted: dict[str, dict[int, str]] = {}
            for name, model in self._models.items():
                path = model.base_path
                try:
                    wanted[name] = versions(model)
                except OSError as error:
                    what = f"Could not find base path {path} for servable {name} with error {error}"
                    if fail:
                        raise NotFoundError(what) from error
                    _log.error("FileSystemStoragePathSource encountered a filesystem access error: %s", what)
                    return
                if fail and not wanted[name]:
                    raise NotFoundError(f"No versions of servable {name} found under {path}")
            self._manager.want(wanted)

    def _repeat(self, step: Callable[[], None], seconds: float, name: str) -> None:
        def run() -> None:
            while not self._stopped.wait(seconds):
                try:
                    step()
                # Whatever a round stumbles over, what is served stays served and the next round may succeed.
                except Exception as error:
                    _log.error("Following the %s failed; it goes on: %s", name, from_exception(error).status)

        threading.Thread(target=run, name=name, daemon=True).start()


def versions(model: model_server_config_pb2.ModelConfig) -> dict[int, str]:
    """The versions to serve, each with its path: what is on disk, as the model's version policy chooses.

    A child of the base path is a version if its whole name is an integer, folder or not, with leading zeros
    or not. Nothing to serve is no error; a base path that cannot be listed is an OSError.
    """
    found: dict[int, str] = {}
    for child in sorted(os.listdir(model.base_path)):
        number = version_number(child)
        if number is None:
            continue
        first = found.setdefault(number, os.path.join(model.base_path, child))
        if os.path.basename(first) != child:
            _log.warning("Duplicate version directories: %s is loaded, %s is ignored.", first, child)
    if not found:
        hint = "Did you forget to name your leaf directory as a number (eg. '/1/')?"
        where = f"servable {model.name} found under base path {model.base_path}"
        _log.warning("No versions of %s. %s", where, hint)
    policy = model.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    wanted = set(found) if choice == "all" else set(sorted(found)[-max(policy.latest.num_versions, 1) :])
    if choice == "specific":
        wanted = set(policy.specific.versions)
        for missing in sorted(wanted - set(found)):
            _log.warning("Version %d of servable %s is to be served, but not there.", missing, model.name)
    return {number: path for number, path in found.items() if number in wanted}
