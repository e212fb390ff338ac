"""What both clients are made of."""

import os
import pathlib
from collections.abc import Mapping

from serving.client.exchange import Target
from serving.client.transport import parse_address
from serving.errors import InvalidArgumentError

PathLike = str | os.PathLike[str]


class Settings:
    """What both clients are made of: the endpoint, and the defaults of every call."""

    def __init__(
        self,
        address: str,
        model: str = "default",
        timeout: float = 10.0,
        *,
        retries: int = 2,
        headers: Mapping[str, str] | None = None,
        ca: PathLike | None = None,
        cert: PathLike | None = None,
        key: PathLike | None = None,
    ) -> None:
        self.model = model
        self.timeout = timeout
        self._retries = retries
        files = {"ca": ca, "cert": cert, "key": key}
        files = {name: pathlib.Path(path) for name, path in files.items() if path is not None}
        self._endpoint = parse_address(address, headers=dict(headers or {}), **files)

    def _seconds(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else timeout

    def _target(self, model: str | None, version: int | None = None, label: str | None = None) -> Target:
        if version is not None and label is not None:
            raise InvalidArgumentError(f"name a version ({version}) or a label ({label!r}), not both")
        return Target(model or self.model, version, label)
