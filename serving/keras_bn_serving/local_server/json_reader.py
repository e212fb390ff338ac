"""Reading JSON, with big arrays of numbers read straight into NumPy.

simdjson reads big documents that are JSON by the book. Python's `json` reads all others that TensorFlow
Serving accepts: with NaN and Infinity, integers of any size, bytes that are not UTF-8, equal keys (the first
counts), or text after the end.
"""

import contextlib
import json
import math
import re
from typing import Any

import numpy as np
import simdjson

from keras_bn_serving.wire.errors import InvalidArgumentError

_BIG_BYTES = 4096  # of shorter documents, json is the faster reader
_BIG = 256  # an array of fewer numbers is a list
_MAX_KEYS = 100
_MAX_RANK = 32
_NUMERALS = b"0123456789.eE+- \t\r\n"

# NaN, Infinity and -Infinity are words of Python's json; these stand for them where they are not in a string.
_WORDS = {b"Inf": b"Infinity", b"-Inf": b"-Infinity", b"-NaN": b"NaN"}
_OTHER_WORDS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?Inf(?:inity)?\b|-NaN\b', re.DOTALL)


def parse(body: bytes) -> Any:
    """The document's value, with an ndarray (int64 or float64) for a big array of numbers.

    Bytes that are not UTF-8 come back as lone surrogates; more than some 1,000 levels are refused.
    """
    if len(body) >= _BIG_BYTES:
        try:
            return _Walk(body).value(simdjson.Parser().parse(body))
        except (ValueError, RuntimeError):  # the latter are simdjson's, and RecursionError
            pass
    return _with_json(body.removeprefix(b"\xef\xbb\xbf"))


class _Walk:
    """Python's values for simdjson's, visited in the order in which they stand in the document.

    simdjson reads an array of any nesting into one flat buffer. Whether the nesting is a rectangle is seen
    from the brackets and commas of the document, which is faster than to ask every array for its length.
    """

    def __init__(self, body: bytes) -> None:
        # Where no quotation mark is escaped, every other piece between them is outside of strings.
        pieces = [] if b"\\" in body else body.translate(None, _NUMERALS).split(b'"')
        self._structure = b"".join(pieces[::2])
        self._position = 0  # in the structure, after the opening bracket of the array visited last

    def value(self, element: Any) -> Any:
        if isinstance(element, simdjson.Object):
            keys = list(element)
            # simdjson compares a key with all those before it, and up to a NUL.
            if len(keys) > _MAX_KEYS or len(set(keys)) < len(keys) or any("\0" in key for key in keys):
                raise ValueError("left to json")
            return {key: self.value(element[key]) for key in keys}
        if not isinstance(element, simdjson.Array):
            return element
        if self._structure:
            self._position = self._structure.index(b"[", self._position) + 1
            numbers = self._rectangle(element)
            if numbers is not None:
                return numbers
        return [self.value(item) for item in element]

    def _rectangle(self, array: simdjson.Array) -> np.ndarray | None:
        """A big array of numbers whose nested arrays are of one shape; None if it is anything else."""
        shape = _first_shape(array)
        size, start = math.prod(shape), self._position - 1
        if len(shape) > _MAX_RANK or not _BIG <= size <= len(self._structure) - start:
            return None
        numbers = _numbers(array)
        if numbers is None or len(numbers) != size:
            return None
        structure = b""
        for length in reversed(shape):
            structure = b"[" + b",".join([structure] * length) + b"]"
        if not self._structure.startswith(structure, start):
            return None
        self._position = start + len(structure)
        return numbers.reshape(shape)


def _first_shape(array: Any) -> list[int]:
    """The length of an array, of its first element, of that one's first element, and so on."""
    shape: list[int] = []
    while isinstance(array, simdjson.Array) and len(shape) <= _MAX_RANK:
        shape.append(len(array))
        array = array[0] if len(array) else None
    return shape


def _numbers(array: simdjson.Array) -> np.ndarray | None:
    """The numbers in an array: int64 if all are integers, else float64; None if it holds anything else.

    ValueError for an integer beyond int64, which float64 might round.
    """
    with contextlib.suppress(TypeError):
        return np.frombuffer(array.as_buffer(of_type="i"), np.int64)
    with contextlib.suppress(TypeError):
        return np.frombuffer(array.as_buffer(of_type="d"), np.float64)
    return None


def _with_json(body: bytes) -> Any:
    if b"Inf" in body or b"-NaN" in body:
        body = _OTHER_WORDS.sub(lambda match: _WORDS.get(match[0], match[0]), body)
    try:
        return _DECODER.raw_decode(body.decode("utf-8", "surrogateescape").lstrip(" \t\r\n"))[0]
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"JSON Parse error: {error}") from None


def _finite(literal: str) -> float:
    value = float(literal)
    if math.isinf(value):
        raise ValueError(f"Number too big to be stored in double: {literal}")
    return value


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    return result if len(result) == len(pairs) else dict(reversed(pairs))


_DECODER = json.JSONDecoder(object_pairs_hook=_first_wins, parse_float=_finite)
