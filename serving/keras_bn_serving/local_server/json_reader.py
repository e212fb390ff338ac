"""Reading JSON, with big arrays of numbers read straight into NumPy.

An array of numbers that is most of the document (an image) is lifted out of the text and read by simdjson
into one buffer, without a Python object per number; Python's `json` reads the rest. As in TF Serving, NaN and
Infinity are numbers, the first of two equal keys counts, and what follows the document is ignored.
"""

import json
import math
import re
import secrets
from typing import Any

import numpy as np
import simdjson

from keras_bn_serving.wire.errors import InvalidArgumentError

_LIFT_BYTES = 4096  # shorter texts are not worth the search for an array
_NUMERALS = b"0123456789.eE+- \t\r\n"
_MAX_RANK = 32
_MAX_STRINGS = 1000  # after so many, a big array is not worth looking for
# In the place of lifted array number i stands this literal followed by i: json hands it to `parse_float`.
# It is drawn by lot, so that no document holds it.
_MARK = f"-0.{secrets.randbelow(10**16):016}e-"

# NaN, Infinity and -Infinity are words of Python's json; these stand for them where they are not in a string.
_WORDS = {b"Inf": b"Infinity", b"-Inf": b"-Infinity", b"-NaN": b"NaN"}
_OTHER_WORDS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?Inf(?:inity)?\b|-NaN\b', re.DOTALL)


def parse(body: bytes) -> Any:
    """The document's value, with an ndarray (int64 or float64) for a big array of numbers.

    Bytes that are not UTF-8 come back as lone surrogates; more than some 1,000 levels are refused.
    """
    rest, arrays = _lift(body.removeprefix(b"\xef\xbb\xbf"))
    if b"Inf" in rest or b"-NaN" in rest:
        rest = _OTHER_WORDS.sub(lambda match: _WORDS.get(match[0], match[0]), rest)

    def number(literal: str) -> Any:
        if arrays and literal.startswith(_MARK):
            return arrays[int(literal.removeprefix(_MARK))]
        value = float(literal)
        if math.isinf(value):
            raise ValueError(f"Number too big to be stored in double: {literal}")
        return value

    decoder = json.JSONDecoder(object_pairs_hook=_first_wins, parse_float=number)
    try:
        return decoder.raw_decode(rest.decode("utf-8", "surrogateescape").lstrip(" \t\r\n"))[0]
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"JSON Parse error: {error}") from None


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    return result if len(result) == len(pairs) else dict(reversed(pairs))


def _lift(body: bytes) -> tuple[bytes, list[np.ndarray]]:
    """The document with a mark in the place of each big numeric array, and those arrays."""
    arrays: list[np.ndarray] = []
    if len(body) < _LIFT_BYTES or b"\\" in body:
        return body, arrays
    pieces, done, position = [], 0, 0  # `position` is where the text between two strings begins
    for _ in range(_MAX_STRINGS):
        opening = body.find(b'"', position)
        stop = opening if opening >= 0 else len(body)
        if stop - position >= _LIFT_BYTES:
            brace = body.find(b"}", position, stop)
            start = body.find(b"[", position, stop)
            end = body.rfind(b"]", position, brace if brace >= 0 else stop) + 1
            array = _numbers(body, start, end) if 0 <= start < end else None
            if array is not None:
                pieces += [body[done:start], b"%b%d" % (_MARK.encode(), len(arrays))]
                arrays.append(array)
                done = end
        position = body.find(b'"', stop + 1) + 1
        if not position:
            break
    return b"".join([*pieces, body[done:]]), arrays


def _numbers(body: bytes, start: int, end: int) -> np.ndarray | None:
    """A part of `body` as a rectangular array of numbers, None if it is anything else."""
    if 2 * (end - start) > len(body):  # a copy is worth avoiding
        before, after = (len(text.translate(None, _NUMERALS)) for text in (body[:start], body[end:]))
        structure = body.translate(None, _NUMERALS)
        structure = structure[before : len(structure) - after]
    else:
        structure = body[start:end].translate(None, _NUMERALS)
    shape = _shape(structure)
    if shape is None:
        return None
    decimal = any(body.find(sign, start, end) >= 0 for sign in (b".", b"e", b"E"))
    kind, dtype = ("d", np.float64) if decimal else ("i", np.int64)
    try:
        flat: Any = simdjson.Parser().parse(memoryview(body)[start:end])
        return np.frombuffer(flat.as_buffer(of_type=kind), dtype).reshape(shape)
    except (ValueError, TypeError, RuntimeError):
        return None  # json will say why


def _shape(structure: bytes) -> list[int] | None:
    """The shape of an array of which only brackets and commas are left, None if it is ragged."""
    rank = len(structure) - len(structure.lstrip(b"["))
    shape: list[int] = []
    block = b""  # an array of the level below
    for level in range(1, rank + 1 if rank <= _MAX_RANK else 0):
        # The first array of this level lies between its opening bracket and the last of `level` closing ones.
        inside = structure.find(b"]" * level) + level - 1 - (rank - level + 1)
        size = (inside + 1) // (len(block) + 1)
        if size < 1:
            return None
        block = b"[" + b",".join([block] * size) + b"]"
        shape.insert(0, size)
    return shape if block == structure else None
