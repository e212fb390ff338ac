"""What both clients are made of: the settings, checked, and the defaults of every call."""

import numbers
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from keras_bn_serving.client.endpoint import parse_address
from keras_bn_serving.client.exchange import Target
from keras_bn_serving.client.inputs import check_name
from keras_bn_serving.client.operations import Operations
from keras_bn_serving.client.transport import AsyncTransport, Transport
from keras_bn_serving.wire.errors import FailedPreconditionError, InvalidArgumentError

PathLike = str | os.PathLike[str]
_LARGEST_VERSION = 2**63 - 1  # TF Serving holds versions in an int64


class Settings:
    """What both clients are made of. A client is copied and pickled by its settings alone."""

    _operations: Operations

    def __init__(
        self,
        address: str,
        model: str = "default",
        timeout: float = 10.0,
        *,
        retries: int = 2,
        max_in_flight: int = 32,
        headers: Mapping[str, str] | None = None,
        compress: bool = False,
        check_shapes: bool = True,
        ca: PathLike | None = None,
        cert: PathLike | None = None,
        key: PathLike | None = None,
        transport: Transport | AsyncTransport | None = None,
    ) -> None:
        self.model = check_name("the model", model)
        self.timeout = timeout
        self._seconds(None)
        self._retries = check_whole("retries", retries, 0)
        self._max_in_flight = check_whole("max_in_flight", max_in_flight, 1)
        self._check_shapes = check_shapes
        files = {name: _path(name, file) for name, file in (("ca", ca), ("cert", cert), ("key", key))}
        if headers is not None and not isinstance(headers, Mapping):
            raise InvalidArgumentError(f"headers should be a dict of str by str, not {headers!r}")
        self._address = address
        self._endpoint = parse_address(address, headers=dict(headers or {}), compress=compress, **files)
        self._injected = transport
        self._closed = False
        self._open()

    def _open(self) -> None:
        """Make what calls go through, and `_operations`."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        endpoint = self._endpoint
        return {
            "address": self._address,
            "model": self.model,
            "timeout": self.timeout,
            "retries": self._retries,
            "max_in_flight": self._max_in_flight,
            "headers": dict(endpoint.headers),
            "compress": endpoint.compress,
            "check_shapes": self._check_shapes,
            "ca": endpoint.ca,
            "cert": endpoint.cert,
            "key": endpoint.key,
            "transport": self._injected,
        }

    def __setstate__(self, settings: dict[str, Any]) -> None:
        Settings.__init__(self, **settings)

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError(
                "this client is closed: make another, or close it after the last call"
            )

    def _seconds(self, timeout: Any) -> float:
        seconds = self.timeout if timeout is None else timeout
        if not isinstance(seconds, numbers.Real) or isinstance(seconds, bool):
            raise InvalidArgumentError(f"timeout should be a number of seconds, not {seconds!r}")
        return float(seconds)

    def _target(self, model: str | None, version: int | None = None, label: str | None = None) -> Target:
        if version is not None and label is not None:
            raise InvalidArgumentError(f"name a version ({version}) or a label ({label!r}), not both")
        return Target(
            check_name("the model", self.model if model is None else model),
            None if version is None else check_whole("a version", version, 0, _LARGEST_VERSION),
            None if label is None else check_name("the label", label),
        )


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an argument that is an integer in a range, or raise InvalidArgumentError."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < least:
        raise InvalidArgumentError(f"{name} is an integer from {least} up, not {value!r}")
    if most is not None and int(value) > most:
        raise InvalidArgumentError(f"{name} is at most {most}, not {value!r}")
    return int(value)


def _path(name: str, file: Any) -> pathlib.Path | None:
    if file is None:
        return None
    if not isinstance(file, str | os.PathLike):
        raise InvalidArgumentError(f"{name} should be the path of a PEM file, not {file!r}")
    return pathlib.Path(file)
