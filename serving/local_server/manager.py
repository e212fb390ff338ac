"""The versions of all models: loaded, swapped and unloaded so that what is served stays served.

The rule, decided anew for every model on each tick (TensorFlow Serving's availability-preserving policy): a
version that is no longer wanted is unloaded once a wanted one is ready; until then, the highest wanted
version that is new is loaded. A version that failed is not tried again while any other version of its model
is alive.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from tensorflow_serving.apis import get_model_status_pb2

from serving.local_server.status import StatusError, from_exception, invalid_argument, not_found

State = get_model_status_pb2.ModelVersionStatus.State
START, LOADING, AVAILABLE, UNLOADING, END = (
    State.Value(name) for name in ("START", "LOADING", "AVAILABLE", "UNLOADING", "END")
)
_TICK_SECONDS = 0.1
_log = logging.getLogger(__name__)


class Servable(Protocol):
    """What a loader makes of a version's folder; `close` is called after the last use."""

    def close(self) -> None:
        """Give back what the servable holds."""


S = TypeVar("S", bound=Servable)


class Version(Generic[S]):
    """One version of a model, from the moment it is wanted until it has ended, and its record after that."""

    def __init__(self, number: int, path: str) -> None:
        self.number = number
        self.path = path
        self.state = START
        self.error: StatusError | None = None
        self.servable: S | None = None
        self.in_flight = 0
        self.may_return = False  # ended, and to be loaded anew should it be wanted again


class _Model(Generic[S]):
    def __init__(self) -> None:
        self.wanted: dict[int, str] = {}
        self.versions: dict[int, Version[S]] = {}
        self.labels: dict[str, int] = {}
        self.configured = False

    def in_state(self, *states: int) -> list[Version[S]]:
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


class Manager(Generic[S]):
    """Loads and unloads the versions that `want` names and hands them out by version, label, or as the
    latest.

    Args:
        load: makes a servable of a version, given the model's name and the Version.
        max_retries: times a failed load is tried again.
        retry_seconds: time between two tries.
        labels_ahead: whether a new label may point to a version that is not available.
    """

    def __init__(
        self,
        load: Callable[[str, Version[S]], S],
        max_retries: int = 5,
        retry_seconds: float = 60.0,
        labels_ahead: bool = False,
    ) -> None:
        self._load = load
        self._max_retries = max_retries
        self._retry_seconds = max(retry_seconds, 0.0)
        self._labels_ahead = labels_ahead
        self._loading = threading.Semaphore(os.cpu_count() or 1)
        self._models: dict[str, _Model[S]] = {}
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tick_for_ever, name="manager", daemon=True)
        self._thread.start()

    # What requests need.

    @contextlib.contextmanager
    def use(self, name: str, number: int | None = None, label: str | None = None) -> Iterator[tuple[int, S]]:
        """The number and servable of an available version, kept loaded until the block is left.

        Raises:
            StatusError: NOT_FOUND, or INVALID_ARGUMENT for an unknown label.
        """
        with self._changed:
            version = self._find(name, number, label)
            version.in_flight += 1
        try:
            assert version.servable is not None
            yield version.number, version.servable
        finally:
            with self._changed:
                version.in_flight -= 1
                if not version.in_flight and version.state == UNLOADING:
                    self._changed.notify_all()

    def _find(self, name: str, number: int | None, label: str | None) -> Version[S]:
        model = self._models.get(name, _NO_MODEL)
        if label is not None:
            if label not in model.labels:
                raise invalid_argument(f"Unrecognized servable version label: {label}")
            number = model.labels[label]
        if number is None:
            available = model.in_state(AVAILABLE)
            if available:
                return available[-1]
            raise not_found(f"Servable not found for request: Latest({name})")
        version = model.versions.get(number)
        if version is None or version.state != AVAILABLE:
            raise not_found(f"Servable not found for request: Specific({name}, {number})")
        return version

    def status(self, name: str, number: int | None = None) -> list[Version[S]]:
        """Every version of a model there ever was, or the one asked for, the highest first.

        Raises:
            StatusError: NOT_FOUND.
        """
        with self._changed:
            versions = self._models.get(name, _NO_MODEL).versions
            if number is None:
                if not versions:
                    raise not_found(f"Could not find any versions of model {name}")
                return [versions[key] for key in sorted(versions, reverse=True)]
            if number not in versions:
                raise not_found(f"Could not find version {number} of model {name}")
            return [versions[number]]

    def names(self) -> list[str]:
        """The names of the models that are configured or still loaded."""
        with self._changed:
            return sorted(
                name for name, model in self._models.items() if model.configured or model.in_state(AVAILABLE)
            )

    def labels(self, name: str) -> dict[str, int]:
        """The labels of a model, each with the version it points to."""
        with self._changed:
            return dict(self._models[name].labels)

    # What the configuration needs.

    def want(self, models: Mapping[str, dict[int, str]]) -> None:
        """Make these versions, each with its path, the ones to be served; all others of any model are let
        go."""
        with self._changed:
            for name in {*self._models, *models}:
                model = self._models.setdefault(name, _Model())
                model.configured = name in models
                model.want(models.get(name, {}))
            self._changed.notify_all()

    def label(self, labels: Mapping[str, Mapping[str, int]]) -> None:
        """Replace the labels of all models.

        Raises:
            StatusError: FAILED_PRECONDITION for a version that is not available; no label is changed then.
        """
        with self._changed:
            for name, pairs in labels.items():
                model = self._models.get(name, _NO_MODEL)
                for label, number in pairs.items():
                    version = model.versions.get(number)
                    ahead = self._labels_ahead and model.labels.get(label, number) == number
                    if not ahead and (version is None or version.state != AVAILABLE):
                        raise StatusError(
                            "FAILED_PRECONDITION",
                            f"Request to assign label to version {number} of model {name}, which is not "
                            "currently "
                            "available for inference",
                        )
            for name in {*self._models, *labels}:
                self._models.setdefault(name, _Model()).labels = dict(labels.get(name, {}))

    def wait(
        self, names: list[str], stop: Callable[[], bool] = lambda: False
    ) -> list[tuple[str, Version[S]]]:
        """Wait until each of these models has a version that is available, or none that may become so.

        Returns:
            The names and failed versions of the models that have none.
        """
        with self._changed:
            while not self._stopped.is_set() and not stop():
                outcomes = [self._outcome(name) for name in names]
                if all(settled for settled, _ in outcomes):
                    return [
                        (name, failed) for name, (_, failed) in zip(names, outcomes, strict=True) if failed
                    ]
                self._changed.wait(_TICK_SECONDS)
        return []

    def _outcome(self, name: str) -> tuple[bool, Version[S] | None]:
        """Whether it is known how the wanted versions of a model fared, and one that failed if none is up."""
        model = self._models[name]
        wanted = [model.versions[number] for number in model.wanted if number in model.versions]
        if any(version.state == AVAILABLE for version in wanted):
            return True, None
        if not wanted or any(version.state != END for version in wanted):
            return False, None
        return True, max(wanted, key=lambda version: version.number)

    def close(self, timeout: float = 30.0) -> None:
        """Unload everything, waiting up to `timeout` seconds for the requests in flight."""
        self.want({})
        with self._changed:
            busy = (UNLOADING, AVAILABLE)
            self._changed.wait_for(lambda: not any(m.in_state(*busy) for m in self._models.values()), timeout)
        self._stopped.set()
        self._thread.join()

    # The machinery.

    def _tick_for_ever(self) -> None:
        while not self._stopped.is_set():
            with self._changed:
                self._changed.wait(_TICK_SECONDS)
                work = [
                    (name, model, version)
                    for name, model in self._models.items()
                    if (version := _next_step(model))
                ]
                for name, model, version in work:
                    step, version.state = (
                        (self._unload, UNLOADING) if version.state == AVAILABLE else (self._bring_up, LOADING)
                    )
                    threading.Thread(target=step, args=(name, model, version), daemon=True).start()

    def _bring_up(self, name: str, model: _Model[S], version: Version[S]) -> None:
        servable = error = None
        for attempt in range(self._max_retries + 1):
            if attempt:
                self._stopped.wait(self._retry_seconds)
            if self._stopped.is_set() or version.number not in model.wanted:
                error = error or StatusError(
                    "CANCELLED", "Loading was cancelled: the version is no longer wanted"
                )
                break
            try:
                with self._loading:
                    servable, error = self._load(name, version), None
                break
            except Exception as failure:
                error = from_exception(failure)
                _log.error(
                    "Failed to load servable {name: %s version: %d}, try %d of %d: %s",
                    name,
                    version.number,
                    attempt + 1,
                    self._max_retries + 1,
                    error,
                )
        with self._changed:
            version.servable, version.error = servable, error
            version.state = AVAILABLE if servable is not None else END
            self._changed.notify_all()
        if servable is not None:
            _log.info("Successfully loaded servable version {name: %s version: %d}", name, version.number)

    def _unload(self, name: str, model: _Model[S], version: Version[S]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: version.in_flight == 0)
        assert version.servable is not None
        version.servable.close()
        version.servable = None
        _log.info("Done unloading servable version {name: %s version: %d}", name, version.number)
        with self._changed:
            version.state, version.may_return = END, True
            model.want(model.wanted)  # it may be wanted again by now
            self._changed.notify_all()


_NO_MODEL: _Model = _Model()


def _next_step(model: _Model[S]) -> Version[S] | None:
    """The version to unload (if it is available) or to load (if it is new) now, if any."""
    ready = model.in_state(AVAILABLE)
    unwanted = [version for version in ready if version.number not in model.wanted]
    if unwanted and (not model.wanted or len(unwanted) < len(ready) or len(unwanted) > 1):
        return unwanted[0]
    new = [version for version in model.in_state(START) if version.number in model.wanted]
    return new[-1] if new else None
