"""The JSON forms of what JSON does not have: bytes, text that is no UTF-8, NaN and infinities."""

import base64
from typing import Any

import numpy as np
import orjson

_TEXT = ("utf-8", "surrogateescape")  # bytes that are no UTF-8 travel as they are, as lone surrogates


def dumps(value: Any) -> bytes:
    """Return the JSON of containers, NumPy arrays and `numbers`."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def numbers(array: np.ndarray) -> Any:
    """Return an array of numbers as `dumps` takes it, with NaN, Infinity and -Infinity as bare words.

    Numbers are written with the fewest digits that read back as the same number of their type.
    """
    value = array if array.ndim else array[()]
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return value
    # orjson writes null for each of them.
    words = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}
    pieces = dumps(value).split(b"null")
    missing = [words[str(number)] for number in array[~np.isfinite(array)].tolist()]
    return orjson.Fragment(b"".join(map(b"".join, zip(pieces, [*missing, b""], strict=True))))


def to_text(data: bytes) -> str:
    """Return bytes as text."""
    return data.decode(*_TEXT)


def from_text(text: str) -> bytes:
    """Return the bytes of a text."""
    return text.encode(*_TEXT)


def to_base64(data: bytes) -> dict[str, str]:
    """Return the object that stands for bytes: `{"b64": "..."}`."""
    return {"b64": base64.b64encode(data).decode("ascii")}


def is_base64(value: Any) -> bool:
    """Whether a JSON value is an object that stands for bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def from_base64(value: dict[str, str]) -> bytes:
    """Return the bytes of such an object.

    Blanks and a lack of padding are forgiven; the rest is a ValueError.
    """
    text = "".join(value["b64"].split())
    return base64.b64decode(text if "=" in text else text + "=" * (-len(text) % 4), validate=True)
