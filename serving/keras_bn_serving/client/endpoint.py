"""Addresses: what a client connects to, parsed and checked."""

import ipaddress
import os
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from keras_bn_serving.client.arguments import shown
from keras_bn_serving.wire.errors import InvalidArgumentError

_FORMS = "http://HOST:8501 (REST) or grpc://HOST:8500, with TLS https:// or grpcs://, or unix:/PATH (gRPC)"
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_LONGEST_SOCKET_PATH = 107  # of sun_path, on Linux
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
# Headers that the request itself sets, over HTTP.
_OWN_HEADERS = frozenset(
    (
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)


@dataclass(frozen=True)
class Endpoint:
    """A parsed address, the PEM files for TLS, the headers (gRPC: metadata) and compression of every call."""

    scheme: str
    host: str
    port: int | None
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    compress: bool = False
    ca: pathlib.Path | None = None
    cert: pathlib.Path | None = None
    key: pathlib.Path | None = None

    @property
    def is_rest(self) -> bool:
        """Whether the address speaks HTTP and JSON rather than gRPC."""
        return self.scheme in ("http", "https")

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine, which no proxy can reach."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.scheme == "unix" or self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def authority(self) -> str:
        """Host and port as in a URL: `localhost:8501`, `[::1]:8501`, `models.example`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


def parse_address(address: str, **options: Any) -> Endpoint:
    """Parse `http[s]://host[:port][/prefix]`, `grpc[s]://host[:port]` or `unix:/path` (gRPC).

    `options` are the other fields of `Endpoint`. An international host name is encoded (IDNA).
    """
    if not isinstance(address, str):
        raise InvalidArgumentError(f"the address should be a str, {_FORMS}; not {shown(address)}")
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if "\0" in path or not _is_text(path) or not 0 < len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            raise InvalidArgumentError(
                f"the address {shown(address)} should be unix:/PATH of a socket file, whose path has at most "
                f"{_LONGEST_SOCKET_PATH} bytes"
            )
        return _checked(Endpoint("unix", "", None, path, **options))
    if _CONTROL.search(address) or not _is_text(address):
        raise InvalidArgumentError(f"the address {shown(address)} has characters that no address has")
    try:
        parts = urlsplit(address)
        port, host = parts.port, _ascii(parts.hostname or "")
    except ValueError as error:
        raise InvalidArgumentError(f"the address {shown(address)} is not a URL: {error}") from error
    if port == 0:
        raise InvalidArgumentError(f"the address {shown(address)} has port 0, where nothing listens")
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not host:
        raise InvalidArgumentError(f"the address {shown(address)} should be {_FORMS}")
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidArgumentError(
            f"the address {shown(address)} should have no user, query or fragment: a user goes into headers"
        )
    if parts.scheme.startswith("grpc") and parts.path.strip("/"):
        raise InvalidArgumentError(f"the address {shown(address)} should have no path: gRPC has none")
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    return _checked(Endpoint(parts.scheme, host, port, path, **options))


def _ascii(host: str) -> str:
    """The host as name servers know it; ValueError if it cannot be one."""
    if ":" in host:
        ipaddress.ip_address(host.partition("%")[0])
        return host
    name = host.encode("idna").decode("ascii")
    if name and not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"no host is called {shown(host)}")
    return name


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _checked(endpoint: Endpoint) -> Endpoint:
    if endpoint.key and not endpoint.cert:
        raise InvalidArgumentError(f"key={str(endpoint.key)!r} needs its certificate: pass cert= as well")
    for name, value in endpoint.headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidArgumentError(
                f"header {shown(name)}: {shown(value)} should be a str with a str value"
            )
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidArgumentError(f"{shown(name)} cannot be the name of a header")
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidArgumentError(
                f"the value of header {shown(name)} should be printable ASCII, on one line"
            )
        if endpoint.is_rest and name.lower() in _OWN_HEADERS:
            raise InvalidArgumentError(f"header {shown(name)} is set by the client itself: leave it out")
        if not endpoint.is_rest and (name.lower().endswith("-bin") or not re.fullmatch(r"[\w.-]+", name)):
            raise InvalidArgumentError(
                f"header {shown(name)} is no gRPC metadata: only letters, digits, '-', '_' and '.', no -bin"
            )
    return endpoint
