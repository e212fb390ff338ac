"""Checks of arguments, and how they are shown in messages."""

import numbers
import os
import pathlib
import reprlib
from typing import Any

from keras_bn_serving.wire.errors import InvalidArgumentError


def shown(value: Any) -> str:
    """Return the repr of a value, short, and whatever that raises."""
    try:
        return reprlib.repr(value)
    except Exception:
        return f"a {type(value).__name__}"


def check_name(what: str, name: Any) -> str:
    """Return a name that can be sent, or raise InvalidArgumentError."""
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(f"{what} should be named by a str, not {shown(name)}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{what} {shown(name)} cannot be sent as UTF-8: {error.reason}") from error
    return name


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an argument that is an integer in a range, or raise InvalidArgumentError."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < least:
        raise InvalidArgumentError(f"{name} is an integer from {least} up, not {shown(value)}")
    if most is not None and int(value) > most:
        raise InvalidArgumentError(f"{name} is at most {most}, not {shown(value)}")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """Return an argument that is a bool, or raise InvalidArgumentError."""
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name} should be True or False, not {shown(value)}")
    return value


def check_seconds(value: Any) -> float:
    """Return an argument that is a number, or raise InvalidArgumentError."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise InvalidArgumentError(f"timeout should be a number of seconds, not {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def check_path(name: str, file: Any) -> pathlib.Path | None:
    """Return an argument that is a path, or None, or raise InvalidArgumentError."""
    if file is None:
        return None
    if not isinstance(file, str | os.PathLike):
        raise InvalidArgumentError(f"{name} should be the path of a PEM file, not {shown(file)}")
    return pathlib.Path(file)
