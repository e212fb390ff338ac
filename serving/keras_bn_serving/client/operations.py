"""The operations of the client, as generators of steps: checks, caching, retries and deadlines."""

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keras_bn_serving.client.arguments import check_name, shown
from keras_bn_serving.client.exchange import Codec, Configuration, Exchange, Operation, Pause, Shared, Target
from keras_bn_serving.client.inputs import prepare
from keras_bn_serving.client.metadata import ModelMetadata, Signature, VersionStatus
from keras_bn_serving.wire.errors import (
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    ServingError,
    UnavailableError,
    with_code,
)

_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 2.0
_POLL_S = 0.1
_POLL_TIMEOUT_S = 5.0
_LONGEST_S = 1e9  # beyond some 9e9 the clocks of sockets and gRPC overflow
# A gRPC server that stops cancels the calls it has not begun. Nothing else cancels a call.
_NOT_TAKEN_ON = (UnavailableError, CancelledError, ResourceExhaustedError)
_NOT_UP_YET = (*_NOT_TAKEN_ON, NotFoundError, DeadlineExceededError)
# RESOURCE_EXHAUSTED of a request that will be too much at any time.
_TOO_MUCH = ("larger than max", "too large", "http 413", "metadata size", "memory", "oom ")


class Operations:
    """The operations of both clients, whose steps a carrier executes.

    Metadata is kept per model, version and label. Where no version is named the server may change it
    under us, so whenever the kept copy does not fit (here or on the server) it is fetched again before
    anyone is blamed.
    """

    def __init__(self, codec: Codec, retries: int, check_shapes: bool = True) -> None:
        self._codec = codec
        self._retries = retries
        self._check_shapes = check_shapes
        self._metadata: dict[Target, ModelMetadata] = {}

    def predict(
        self,
        target: Target,
        x: Any,
        signature: str | None,
        outputs: str | Sequence[str] | None,
        timeout: float,
    ) -> Operation[np.ndarray | dict[str, np.ndarray]]:
        """Ask for the outputs of x."""
        deadline = deadline_after(timeout)
        wanted = _names(outputs)
        _check_signature_name(signature)

        def request(metadata: ModelMetadata) -> Exchange:
            found = metadata.signature(signature)
            _check_outputs(wanted, found)
            inputs = prepare(x, found, self._check_shapes)
            return self._codec.predict(target, signature, found, inputs, wanted)

        answer = yield from self._with_metadata(target, request, deadline)
        if isinstance(outputs, str):
            return answer[outputs]
        return next(iter(answer.values())) if outputs is None and len(answer) == 1 else answer

    def examples(
        self,
        method: str,
        target: Target,
        examples: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        signature: str | None,
        context: Mapping[str, Any] | None,
        timeout: float,
    ) -> Operation[Any]:
        """Classify or regress."""
        _check_signature_name(signature)
        listed = [examples] if isinstance(examples, Mapping) else examples
        is_list = isinstance(listed, Sequence) and len(listed) > 0
        if not is_list or not all(isinstance(example, Mapping) for example in listed):
            raise InvalidArgumentError(
                f"{method} takes a dict of features by name, or a non-empty list of them"
            )
        if context is not None and not isinstance(context, Mapping):
            raise InvalidArgumentError(f"context should be a dict of features by name, not {shown(context)}")
        exchange = self._codec.examples(method, target, signature, listed, context)
        return (yield from self._exchange(exchange, deadline_after(timeout)))

    def status(self, target: Target, timeout: float) -> Operation[list[VersionStatus]]:
        """Ask for the state of the versions, newest first."""
        return (yield from self._exchange(self._codec.status(target), deadline_after(timeout)))

    def metadata(self, target: Target, timeout: float) -> Operation[ModelMetadata]:
        """Ask for the signatures."""
        return (yield from self._fetch_metadata(target, deadline_after(timeout)))

    def reload(self, config: Configuration, timeout: float) -> Operation[None]:
        """Replace the server's configuration."""
        exchange = self._codec.reload(config)
        self._metadata.clear()
        return (yield from self._exchange(exchange, deadline_after(timeout)))

    def wait_until_ready(self, target: Target, timeout: float) -> Operation[int]:
        """Poll the status until a version is AVAILABLE."""
        deadline = deadline_after(timeout)
        seen = "nothing yet"
        while (left := deadline - time.monotonic()) > 0:
            try:
                versions = yield replace(self._codec.status(target), timeout=min(left, _POLL_TIMEOUT_S))
            except _NOT_UP_YET as error:
                seen = str(error)
            else:
                ready = [entry.version for entry in versions if entry.state == "AVAILABLE"]
                if ready:
                    return max(ready)
                seen = ", ".join(f"version {entry.version} {entry.state}" for entry in versions)
                _raise_if_all_failed(target, versions)
            yield Pause(min(_POLL_S, max(0.0, deadline - time.monotonic())))
        raise DeadlineExceededError(
            f"model {target.model} is not available after {timeout:.3g} s (last seen: {seen})"
        )

    def _with_metadata(
        self, target: Target, request: Callable[[ModelMetadata], Exchange], deadline: float
    ) -> Operation[Any]:
        """Send request(metadata); if that fails on a kept copy, once more on a fresh one."""
        kept = self._metadata.get(target)
        if kept is not None:
            try:
                return (yield from self._exchange(request(kept), deadline))
            except ServingError as error:
                if error.code not in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "INTERNAL"):
                    raise
                fresh = yield from self._shared_metadata(target, deadline)
                if fresh == kept:
                    raise
        else:
            fresh = yield from self._shared_metadata(target, deadline)
        return (yield from self._exchange(request(fresh), deadline))

    def _shared_metadata(self, target: Target, deadline: float) -> Operation[ModelMetadata]:
        """Fetch the metadata once for all calls that wait for it."""
        return (yield Shared(target, lambda: self._fetch_metadata(target, deadline), deadline))

    def _fetch_metadata(self, target: Target, deadline: float) -> Operation[ModelMetadata]:
        self._metadata.pop(target, None)
        metadata = yield from self._exchange(self._codec.metadata(target), deadline)
        self._metadata[target] = metadata
        return metadata

    def _exchange(self, exchange: Exchange, deadline: float) -> Operation[Any]:
        """Send within the deadline; where the server took nothing on, again, if the call may be repeated."""
        for attempt in itertools.count():
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceededError("the timeout passed before the request was sent")
            try:
                return (yield replace(exchange, timeout=left))
            except _NOT_TAKEN_ON as error:
                pause = min(_FIRST_BACKOFF_S * 2**attempt, _LONGEST_BACKOFF_S) * random.uniform(0.5, 1.5)
                if not self._may_repeat(error, exchange, attempt):
                    raise
                pause = max(pause, error.retry_after or 0.0)
                if time.monotonic() + pause > deadline:
                    raise _out_of_time(error) from error
            except ServingError as error:
                if exchange.hint and error.code in ("INVALID_ARGUMENT", "UNIMPLEMENTED"):
                    raise with_code(error.code, f"{error} ({exchange.hint})") from error
                raise
            yield Pause(pause)

    def _may_repeat(self, error: ServingError, exchange: Exchange, attempt: int) -> bool:
        """An overloaded server until the timeout, others `retries` times."""
        if not exchange.idempotent or not self._retries:
            return False
        text = str(error).lower()
        if isinstance(error, ResourceExhaustedError):
            return not any(words in text for words in _TOO_MUCH)
        is_overload = error.retry_after is not None or ("queue" in text and "full" in text)
        return is_overload or attempt < self._retries


def _out_of_time(error: ServingError) -> ServingError:
    if error.retry_after is None:
        return error
    asks = f"the server asks to be tried again after {error.retry_after:.3g} s, and the timeout leaves less"
    again = with_code(error.code, f"{error} ({asks})")
    again.retry_after = error.retry_after
    return again


def _check_signature_name(name: Any) -> None:
    if name is not None and not (isinstance(name, str) and not name):  # an empty one is the default too
        check_name("the signature", name)


def _names(outputs: str | Sequence[str] | None) -> list[str]:
    if outputs is None:
        return []
    if isinstance(outputs, str):
        return [outputs]
    if not isinstance(outputs, Sequence) or not all(isinstance(name, str) for name in outputs):
        raise InvalidArgumentError(f"outputs should be a str or a list of them, not {shown(outputs)}")
    return list(outputs)


def deadline_after(timeout: float) -> float:
    """Return the time at which a timeout ends, or raise InvalidArgumentError."""
    if not 0 < timeout <= _LONGEST_S:
        raise InvalidArgumentError(
            f"timeout should be a positive number of seconds up to {_LONGEST_S:g}, not {timeout}"
        )
    return time.monotonic() + timeout


def _check_outputs(wanted: Sequence[str], signature: Signature) -> None:
    unknown = [name for name in wanted if name not in signature.outputs]
    if unknown:
        offered = ", ".join(sorted(signature.outputs))
        raise InvalidArgumentError(
            f"no output {', '.join(map(repr, unknown))}: the signature offers {offered}"
        )


def _raise_if_all_failed(target: Target, versions: Sequence[VersionStatus]) -> None:
    failed = [entry for entry in versions if entry.state == "END" and entry.code != "OK"]
    if failed and len(failed) == len(versions):
        reasons = "; ".join(f"version {entry.version}: {entry.code}: {entry.message}" for entry in failed)
        raise FailedPreconditionError(f"model {target.model} cannot be loaded: {reasons}")
