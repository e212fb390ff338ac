"""JSON as tensorflow_model_server reads it, with the big arrays of numbers read straight into NumPy.

Three readers, each for what the one before it does not do:

1. An array of numbers that is most of the document (an image) is lifted out of the text and read by simdjson
   into one buffer, without a Python object per number.
2. Python's `json` reads the rest.
3. What that refuses (or would take where the real server does not) is read again by `json_conformant`, which
   has the last word and the words of the error.

Like the original: NaN and Infinity are numbers, the first of two equal keys counts, what follows the document
is ignored.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np
import simdjson

from serving.local_server import json_conformant

# Shorter texts are not worth the search for an array.
_LIFT_BYTES = 4096
_NUMERALS = b"0123456789.eE+- \t\r\n"
# What `json` accepts and the real server does not: lone surrogates, and decimals beyond the range of a
# double.
_SUSPECT = re.compile(rb"\\u[dD][89a-fA-F]|[eE]\+?0*[1-9][0-9]{2}|[0-9]{300}")
_MARK = "\0"
# Of the text after an array, up to the next string, no more than this is looked at.
_TAIL_BYTES = 256
_MAX_RANK = 32
_STRING_BYTES = 256


class Numbers(NamedTuple):
    """A rectangular array of numbers: int64 if every literal is an integer, else float64; and its text."""

    array: np.ndarray
    text: bytes

    def to_list(self) -> list:
        """The same as nested lists."""
        return json.loads(self.text)


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        result = dict(reversed(pairs))
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_first_wins)


def parse(body: bytes) -> Any:
    """The document's value: dict, list, str, int, float, bool, None, or Numbers for a big array.

    Bytes that are not UTF-8 come back as lone surrogates (`surrogateescape`), since the original passes them
    through.

    Raises:
        json_conformant.ParseError: it is no JSON; the message is the one to send.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    rest, numbers = _lift(body)
    if not _SUSPECT.search(rest):
        try:
            value, _ = _DECODER.raw_decode(rest.decode("utf-8", "surrogateescape").lstrip(" \t\r\n"))
        except (ValueError, RecursionError):
            pass
        else:
            if isinstance(value, dict | list):  # a bare number may have been taken for less than it is: `1.`
                return _restore(value, numbers) if numbers else value
    return json_conformant.parse(body)


def _lift(body: bytes) -> tuple[bytes, list[Numbers]]:
    """The document with its big numeric arrays replaced by marks, and those arrays.

    A mark is a string that starts with the character 0, which no string of such a document can hold: raw it
    is refused, and as an escape it needs a backslash.
    """
    if len(body) < _LIFT_BYTES or b"\\" in body:
        return body, []
    numbers: list[Numbers] = []
    pieces, done, start = [], 0, 0
    for _ in range(
        len(body) // _STRING_BYTES
    ):  # where strings are many, big arrays are not worth looking for
        stop = body.find(b'"', start)
        stop = len(body) if stop < 0 else stop
        found = _find_array(body, start, stop) if stop - start >= _LIFT_BYTES else None
        if found:
            first, array, last = found
            pieces += [body[done:first], b'"\\u0000%d"' % len(numbers)]
            numbers.append(array)
            done = last
        closing = body.find(b'"', stop + 1)  # to the end of the string that begins here
        if closing < 0:
            break
        start = closing + 1
    return b"".join([*pieces, body[done:]]), numbers


def _find_array(body: bytes, start: int, stop: int) -> tuple[int, Numbers, int] | None:
    """The array of numbers in a part of the document that holds no string: its place and its values."""
    start = body.find(b"[", start, stop)
    opening = re.compile(rb"(?:\[[ \t\r\n]*)+").match(body, start) if start >= 0 else None
    if opening is None:
        return None
    rank = opening.group().count(b"[")
    tail = body[max(start, stop - _TAIL_BYTES) : stop]
    end = stop - len(tail) + len(tail.rstrip(b"[]{},: \t\r\n"))
    closing = re.compile(rb"(?:[ \t\r\n]*\]){%d}" % rank).match(body, end)
    if closing is None:
        return None
    text = body[start : closing.end()]
    shape = _shape(text.translate(None, _NUMERALS), rank)
    if shape is None:
        return None
    try:
        flat: Any = simdjson.Parser().parse(text)
        if b"." in text or b"e" in text or b"E" in text:
            array: np.ndarray = np.frombuffer(flat.as_buffer(of_type="d"), np.float64).reshape(shape)
        else:
            array = np.frombuffer(flat.as_buffer(of_type="i"), np.int64).reshape(shape)
    except (ValueError, TypeError, RuntimeError):
        return None  # the conformant parser will say why
    return start, Numbers(array, text), closing.end()


def _shape(structure: bytes, rank: int) -> list[int] | None:
    """The shape of an array of which only brackets and commas are left, or None if it is ragged."""
    if rank > _MAX_RANK:
        return None
    shape: list[int] = []
    block = b""
    for level in range(1, rank + 1):
        end = structure.find(b"]" * level)
        size = (end + level - 1 - (rank - level + 1) + 1) // (len(block) + 1)
        if size < 1:
            return None
        block = b"[" + b",".join([block] * size) + b"]"
        shape.insert(0, size)
    return shape if block == structure else None


def _restore(value: Any, numbers: list[Numbers]) -> Any:
    """Put the arrays back in the place of their marks."""

    def unmark(item: Any) -> Any:
        return numbers[int(item[1:])] if isinstance(item, str) and item.startswith(_MARK) else item

    value = unmark(value)
    open_values = [value]
    while open_values:
        container = open_values.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in list(items) if isinstance(container, dict | list) else ():
            if isinstance(item, str):
                container[key] = unmark(item)
            elif isinstance(item, dict | list):
                open_values.append(item)
    return value
