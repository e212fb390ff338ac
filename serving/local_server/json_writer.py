"""JSON as tensorflow_model_server writes it: number texts, the layout of replies, values quoted in error
messages."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from serving.local_server.json_reader import Numbers

_MAX_QUOTED = 256


def encode(text: str) -> bytes:
    """The bytes of a JSON text; lone surrogates stand for bytes that were not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def quoted(text: str | bytes) -> str:
    """A JSON string; only quotes, backslashes and control characters are escaped."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return json.dumps(text, ensure_ascii=False)


def error_body(message: str) -> bytes:
    """The body of every handled error."""
    return encode(f'{{\n    "error": {quoted(message)}\n}}')


def number_texts(values: np.ndarray) -> list[str]:
    """Texts of float32 or float64 numbers: `%g` where that reads back as the same number, else all digits."""
    digits = ".9g" if values.dtype == np.float32 else ".17g"
    numbers = values.tolist()
    texts = [f"{number:g}" for number in numbers]
    if texts:
        with np.errstate(over="ignore"):
            same = np.array(texts, np.float64).astype(values.dtype) == values
        for index in np.flatnonzero(~same):
            texts[index] = format(numbers[index], digits)
    return [_SPECIAL.get(text) or (text if "." in text or "e" in text else text + ".0") for text in texts]


_SPECIAL = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def texts(array: np.ndarray, as_base64: bool = False) -> list[str]:
    """The JSON text of every element of an array, in row-major order."""
    flat = array.reshape(-1)
    if array.dtype.kind == "f":
        return number_texts(flat)
    if array.dtype.kind == "b":
        return ["true" if value else "false" for value in flat.tolist()]
    if array.dtype.kind == "O":
        return [base64_object(value) if as_base64 else quoted(value) for value in flat]
    return list(map(str, flat.tolist()))


def base64_object(value: bytes) -> str:
    """`value` in the form that JSON has for bytes."""
    return f'{{ "b64": "{base64.b64encode(value).decode()}" }}'


def inline(elements: list[str], shape: Sequence[int]) -> str:
    """An array on one line: `[[1, 2], [3, 4]]`; a scalar for rank 0."""
    for axis in range(len(shape) - 1, -1, -1):
        size, count = shape[axis], int(np.prod(shape[:axis], dtype=np.int64))
        elements = ["[" + ", ".join(elements[i * size : (i + 1) * size]) + "]" for i in range(count)]
    return elements[0]


def expanded(elements: list[str], shape: Sequence[int], indent: int) -> str:
    """An array with every element on a line of its own, `indent` spaces deep; a scalar for rank 0."""
    for axis in range(len(shape) - 1, -1, -1):
        size, count = shape[axis], int(np.prod(shape[:axis], dtype=np.int64))
        outer = "\n" + " " * (indent + 4 * axis)
        inner = outer + "    "
        elements = [
            "[" + inner + ("," + inner).join(elements[i * size : (i + 1) * size]) + outer + "]"
            if size
            else "[]"
            for i in range(count)
        ]
    return elements[0]


def quote_value(value: Any) -> str:
    """`value` as error messages quote it: indented, arrays on one line, cut after 256 bytes and at a NaN."""
    result = ""
    for token in _tokens(value, 0):
        if token is None:
            break
        result += token
        if len(result.encode("utf-8", "surrogateescape")) > _MAX_QUOTED:
            break
    return result


def _tokens(value: Any, depth: int) -> Iterator[str | None]:
    """The tokens of a value in order; None for a number that has no JSON text. Iterative: values may be
    deep."""
    stack: list[Any] = [(value, "", depth)]
    while stack:
        item, before, depth = stack.pop()
        if isinstance(item, _Text):
            yield item
        elif isinstance(item, Numbers):
            stack.append((item.to_list(), before, depth))
        elif isinstance(item, list):
            yield before + "["
            stack.append((_Text("]"), "", depth))
            for index in range(len(item) - 1, -1, -1):
                stack.append((item[index], ", " if index else "", depth))
        elif isinstance(item, dict):
            yield before + "{"
            stack.append((_Text("\n" + "    " * depth + "}" if item else "}"), "", depth))
            line = "\n" + "    " * (depth + 1)
            for index, (key, member) in reversed(list(enumerate(item.items()))):
                stack.append((member, ("," if index else "") + line + quoted(key) + ": ", depth + 1))
        else:
            text = _scalar_text(item)
            yield before + (text or "")
            if text is None:
                yield None


class _Text(str):
    """Text to be written as it is."""


def _scalar_text(value: Any) -> str | None:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return None
    if 1e16 <= abs(number) < 1e21:  # where Python would begin to write an exponent
        return format(Decimal(repr(number)), "f") + ".0"
    return repr(number).replace("e-0", "e-").replace("e+", "e")
