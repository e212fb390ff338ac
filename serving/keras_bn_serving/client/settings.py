"""The base of both clients: the checked settings, and the defaults of every call."""

import os
from collections.abc import Mapping
from typing import Any

from keras_bn_serving.client.arguments import (
    check_flag,
    check_name,
    check_path,
    check_seconds,
    check_whole,
    shown,
)
from keras_bn_serving.client.endpoint import parse_address
from keras_bn_serving.client.exchange import Target
from keras_bn_serving.client.operations import Operations, deadline_after
from keras_bn_serving.client.transport import AsyncTransport, Transport, closed
from keras_bn_serving.wire.errors import InvalidArgumentError

PathLike = str | os.PathLike[str]
_LARGEST_VERSION = 2**63 - 1  # TF Serving holds versions in an int64


class Settings:
    """The base of both clients. Only the settings of a client are copied and pickled."""

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
        deadline_after(check_seconds(timeout))
        self._retries = check_whole("retries", retries, 0)
        self._max_in_flight = check_whole("max_in_flight", max_in_flight, 1)
        self._check_shapes = check_flag("check_shapes", check_shapes)
        check_flag("compress", compress)
        files = {name: check_path(name, file) for name, file in (("ca", ca), ("cert", cert), ("key", key))}
        if headers is not None and not isinstance(headers, Mapping):
            raise InvalidArgumentError(f"headers should be a dict of str by str, not {shown(headers)}")
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
            raise closed()

    def _seconds(self, timeout: float | None) -> float:
        return check_seconds(self.timeout if timeout is None else timeout)

    def _target(self, model: str | None, version: int | None = None, label: str | None = None) -> Target:
        if version is not None and label is not None:
            raise InvalidArgumentError(
                f"name a version or a label, not both ({shown(version)}, {shown(label)})"
            )
        return Target(
            check_name("the model", self.model if model is None else model),
            None if version is None else check_whole("a version", version, 0, _LARGEST_VERSION),
            None if label is None else check_name("the label", label),
        )
