"""What both clients are made of."""

import numbers
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from keras_bn_serving.client.exchange import Codec, Target
from keras_bn_serving.client.operations import Operations
from keras_bn_serving.client.transport import Endpoint, parse_address
from keras_bn_serving.wire.errors import InvalidArgumentError

PathLike = str | os.PathLike[str]


class Settings:
    """What both clients are made of: a connection, and the defaults of every call."""

    _connect: Callable[[Endpoint], tuple[Codec, Any]]

    def __init__(
        self,
        address: str,
        model: str = "default",
        timeout: float = 10.0,
        *,
        retries: int = 2,
        headers: Mapping[str, str] | None = None,
        compress: bool = False,
        check_shapes: bool = True,
        ca: PathLike | None = None,
        cert: PathLike | None = None,
        key: PathLike | None = None,
    ) -> None:
        self.model = model
        self.timeout = timeout
        files = {"ca": ca, "cert": cert, "key": key}
        files = {name: pathlib.Path(path) for name, path in files.items() if path is not None}
        endpoint = parse_address(address, headers=dict(headers or {}), compress=compress, **files)
        codec, self._transport = self._connect(endpoint)
        self._operations = Operations(codec, retries, check_shapes)

    def _seconds(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else timeout

    def _target(self, model: str | None, version: int | None = None, label: str | None = None) -> Target:
        if version is not None and label is not None:
            raise InvalidArgumentError(f"name a version ({version}) or a label ({label!r}), not both")
        if version is not None and not (isinstance(version, numbers.Integral) and version >= 0):
            raise InvalidArgumentError(f"a version is an integer from 0 up, not {version!r}")
        return Target(model or self.model, version, label)
