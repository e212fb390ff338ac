"""The versions of all models: loaded, swapped and unloaded so that what is served stays served.

The rule, decided anew for every model on each tick (TensorFlow Serving's availability-preserving policy): a
version no longer wanted is unloaded once a wanted one is ready; until then, the highest wanted one that is
new is loaded. One that failed is not tried again while any other version of its model is alive.
"""

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tensorflow_serving.apis import get_model_status_pb2

from keras_bn_serving.local_server import memory
from keras_bn_serving.local_server.flags import Flags
from keras_bn_serving.local_server.status import from_exception
from keras_bn_serving.wire.errors import (
    CancelledError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ServingError,
)

State = get_model_status_pb2.ModelVersionStatus.State
START, LOADING, AVAILABLE, UNLOADING, END = map(
    State.Value, ("START", "LOADING", "AVAILABLE", "UNLOADING", "END")
)
_TICK_SECONDS = 0.1
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Version:
    """One version of a model, from the moment it is wanted until it has ended, and its record after that."""

    number: int
    path: str
    state: int = START
    error: ServingError | None = None
    loaded: Any = None
    in_flight: int = 0
    may_return: bool = False  # ended, and to be loaded anew should it be wanted again


class _Model:
    def __init__(self) -> None:
        self.wanted: dict[int, str] = {}
        self.versions: dict[int, Version] = {}
        self.labels: dict[str, int] = {}
        self.configured = False

    def in_state(self, *states: int) -> list[Version]:
        return [version for _, version in sorted(self.versions.items()) if version.state in states]

    def want(self, wanted: dict[int, str]) -> None:
        self.wanted = wanted
        for version in self.in_state(START):
            if version.number not in wanted:
                version.state, version.may_return = END, True
        if not wanted and not self.in_state(LOADING, AVAILABLE, UNLOADING):
            for version in self.versions.values():
                version.may_return = True
        for number, path in wanted.items():
            if number not in self.versions or self.versions[number].may_return:
                self.versions[number] = Version(number, path)

    def next_step(self) -> Version | None:
        """The version to unload (if it is available) or to load (if it is new) now, if any."""
        ready = self.in_state(AVAILABLE)
        unwanted = [version for version in ready if version.number not in self.wanted]
        if unwanted and (not self.wanted or len(unwanted) < len(ready) or len(unwanted) > 1):
            return unwanted[0]
        new = [version for version in self.in_state(START) if version.number in self.wanted]
        return new[-1] if new else None

    def outcome(self) -> tuple[bool, Version | None]:
        """Whether it is known how the wanted versions fared, and the highest of them if all have failed."""
        wanted = [self.versions[number] for number in sorted(self.wanted) if number in self.versions]
        if any(version.state == AVAILABLE for version in wanted):
            return True, None
        if not wanted or any(version.state != END for version in wanted):
            return False, None
        return True, wanted[-1]


class Manager:
    """Loads and unloads the versions that `want` names; hands them out by version, label, or as the latest.

    `load` loads a version, given the model's name and the version's path; what it returns has a `close()`.
    """

    def __init__(self, load: Callable[[str, str], Any], flags: Flags) -> None:
        self._load = load
        self._tries = 1 + max(flags.max_num_load_retries, 0)
        self._retry_seconds = max(flags.load_retry_interval_micros / 1e6, 0)
        self._labels_ahead = flags.allow_version_labels_for_unavailable_models
        self._loading = threading.Semaphore(os.cpu_count() or 1)
        self._models: dict[str, _Model] = {}
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tick_for_ever, name="manager", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def use(
        self, name: str, number: int | None = None, label: str | None = None
    ) -> Iterator[tuple[int, Any]]:
        """The number of an available version and what was loaded, which it stays until the block is left."""
        with self._changed:
            version = self._find(name, number, label)
            version.in_flight += 1
        try:
            yield version.number, version.loaded
        finally:
            with self._changed:
                version.in_flight -= 1
                if not version.in_flight and version.state == UNLOADING:
                    self._changed.notify_all()

    def _find(self, name: str, number: int | None, label: str | None) -> Version:
        model = self._models.get(name, _NO_MODEL)
        if label is not None:
            if label not in model.labels:
                raise InvalidArgumentError(f"Unrecognized servable version label: {label}")
            number = model.labels[label]
        found = [one for one in model.in_state(AVAILABLE) if number in (None, one.number)]
        if not found:
            asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise NotFoundError(f"Servable not found for request: {asked}")
        return found[-1]

    def status(self, name: str, number: int | None = None) -> list[Version]:
        """Every version of a model there ever was, or the one asked for, the highest first; or NOT_FOUND."""
        with self._changed:
            versions = sorted(self._models.get(name, _NO_MODEL).versions.items(), reverse=True)
        found = [version for key, version in versions if number in (None, key)]
        if not found:
            what = "any versions" if number is None else f"version {number}"
            raise NotFoundError(f"Could not find {what} of model {name}")
        return found

    def models(self) -> dict[str, tuple[list[Version], dict[str, int]]]:
        """The versions and labels of the models that are configured or still loaded, by name."""
        with self._changed:
            return {
                name: ([version for _, version in sorted(model.versions.items(), reverse=True)], model.labels)
                for name, model in sorted(self._models.items())
                if model.configured or model.in_state(AVAILABLE)
            }

    def want(self, models: Mapping[str, dict[int, str]]) -> None:
        """Make these versions, each with its path, the ones to be served; all others are let go."""
        with self._changed:
            for name in {*self._models, *models}:
                model = self._models.setdefault(name, _Model())
                model.configured = name in models
                model.want(models.get(name, {}))
            self._changed.notify_all()

    def label(self, labels: Mapping[str, Mapping[str, int]]) -> None:
        """Replace the labels of all models; or FAILED_PRECONDITION, and no change, if a version is not up."""
        with self._changed:
            for name, pairs in labels.items():
                model = self._models.get(name, _NO_MODEL)
                available = {version.number for version in model.in_state(AVAILABLE)}
                for label, number in pairs.items():
                    ahead = self._labels_ahead and model.labels.get(label, number) == number
                    if not ahead and number not in available:
                        what = f"Request to assign label to version {number} of model {name}"
                        why = "which is not currently available for inference"
                        raise FailedPreconditionError(f"{what}, {why}")
            for name in {*self._models, *labels}:
                self._models.setdefault(name, _Model()).labels = dict(labels.get(name, {}))

    def wait(self, names: list[str], stop: Callable[[], bool] = lambda: False) -> list[tuple[str, Version]]:
        """Wait until each has an available version, or none that may become so; those, and what failed."""
        with self._changed:
            while not self._stopped.is_set() and not stop():
                outcomes = [(name, *self._models[name].outcome()) for name in names]
                if all(known for _, known, _ in outcomes):
                    return [(name, failed) for name, _, failed in outcomes if failed]
                self._changed.wait(_TICK_SECONDS)
        return []

    def close(self, timeout: float = 30.0) -> None:
        """Unload everything, waiting up to `timeout` seconds for the requests in flight."""
        self.want({})
        with self._changed:
            models = self._models.values()
            self._changed.wait_for(lambda: not any(m.in_state(UNLOADING, AVAILABLE) for m in models), timeout)
        self._stopped.set()
        self._thread.join()

    def _tick_for_ever(self) -> None:
        while not self._stopped.is_set():
            with self._changed:
                self._changed.wait(_TICK_SECONDS)
                for name, model in self._models.items():
                    version = model.next_step()
                    if version is None:
                        continue
                    unload = version.state == AVAILABLE
                    version.state = UNLOADING if unload else LOADING
                    step = self._unload if unload else self._bring_up
                    try:
                        threading.Thread(target=step, args=(name, model, version), daemon=True).start()
                    except RuntimeError as error:  # no thread can be started now; the next tick tries again
                        version.state = AVAILABLE if unload else START
                        _log.error("The versions of %s stay as they are for now: %s", name, error)

    def _bring_up(self, name: str, model: _Model, version: Version) -> None:
        loaded: Any = None
        error: ServingError | None = None
        who = f"servable version {{name: {name} version: {version.number}}}"
        for attempt in range(1, self._tries + 1):
            if attempt > 1:
                self._stopped.wait(self._retry_seconds)
            if self._stopped.is_set() or version.number not in model.wanted:
                error = error or CancelledError("Loading was cancelled: it is no longer wanted")
                break
            try:
                with self._loading, memory.of_models():
                    loaded, error = self._load(name, version.path), None
                    memory.give_back()  # what loading took, copies of the graph above all
                _log.info("Successfully loaded %s", who)
                break
            except Exception as failure:
                error = from_exception(failure)
                _log.error("Try %d of %d to load %s failed: %s", attempt, self._tries, who, error.status)
        with self._changed:
            version.loaded, version.error = loaded, error
            version.state = END if error else AVAILABLE
            self._changed.notify_all()

    def _unload(self, name: str, model: _Model, version: Version) -> None:
        with self._changed:
            self._changed.wait_for(lambda: version.in_flight == 0)
        with memory.of_models():
            try:
                version.loaded.close()
            except Exception as error:
                _log.error("Closing version %d of %s failed: %s", version.number, name, from_exception(error))
            version.loaded = None
            memory.give_back()
        _log.info("Done unloading servable version {name: %s version: %d}", name, version.number)
        with self._changed:
            version.state, version.may_return = END, True
            model.want(model.wanted)  # it may be wanted again by now
            self._changed.notify_all()


_NO_MODEL = _Model()
