"""JSON out, with TensorFlow Serving's line breaks and spelling of numbers."""

import json
from typing import Any

import numpy as np

from keras_bn_serving.wire import json_values
from keras_bn_serving.wire.dtypes import name_of
from keras_bn_serving.wire.errors import InvalidArgumentError

_INDENT = "    "
_DIGITS = {np.dtype(np.float32): 9, np.dtype(np.float64): 17}  # that tell all numbers of the type apart
_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def document(key: str, value: Any, inline: bool = False, rows: bool = False) -> bytes:
    """A document with one member, of nested lists and dicts whose leaves are texts of JSON.

    Lists are written with an element to a line or, if `inline`, on one line; if `rows`, what closes the
    outermost list has a line to itself then.
    """
    text = _written(value, 1, inline)
    if rows and inline and value:
        text = f"{text[:-1]}\n{_INDENT}]"
    return encoded(f'{{\n{_INDENT}"{key}": {text}\n}}')


def objects(key: str, rows: list[dict[str, Any]]) -> bytes:
    """A document of one list of objects, each member on a line."""
    line = f"\n{_INDENT * 2}"
    texts = f",{line}".join(_written(row, 2, inline=True) for row in rows)
    return encoded(
        f'{{\n{_INDENT}"{key}": [{line}{texts}\n{_INDENT}]\n}}' if rows else document(key, []).decode()
    )


def error(message: str) -> bytes:
    """The document that says what is wrong."""
    return document("error", quoted(message))


def values(array: np.ndarray, alias: str = "") -> Any:
    """An array as nested lists of texts of JSON, or one such text.

    Strings are base64 objects if `alias` ends in `_bytes`. INVALID_ARGUMENT for values without a JSON form.
    """
    array = np.asarray(array)
    texts = np.empty(array.size, object)
    if array.size:  # of no values, none is without a form
        texts[:] = _texts(array.reshape(-1), alias)
    return texts.reshape(array.shape).tolist()


def quoted(text: str) -> str:
    """A JSON string."""
    return json.dumps(text, ensure_ascii=False)


def encoded(text: str) -> bytes:
    """The bytes of a document; those of requests that were no UTF-8 leave as they came."""
    try:
        return json_values.from_text(text)
    except UnicodeEncodeError:  # half a pair of surrogates
        return text.encode("utf-8", "replace")


def _written(value: Any, level: int, inline: bool) -> str:
    if isinstance(value, str):
        return value
    begin, end = "[]" if isinstance(value, list) else "{}"
    if not value:
        return begin + end
    line = f"\n{_INDENT * (level + 1)}"
    if isinstance(value, dict):
        parts = [f"{quoted(key)}: {_written(item, level + 1, inline)}" for key, item in value.items()]
    elif isinstance(value[0], str):
        parts = value
    else:
        parts = [_written(item, level + 1, inline) for item in value]
    if inline and isinstance(value, list):
        return f"[{', '.join(parts)}]"
    return f"{begin}{line}{f',{line}'.join(parts)}\n{_INDENT * level}{end}"


def _texts(flat: np.ndarray, alias: str) -> list[Any]:
    dtype, items = flat.dtype, flat.tolist()
    if dtype in _DIGITS:
        return _floats(flat, items, _DIGITS[dtype])
    if dtype.kind == "O" and alias.endswith("_bytes"):
        return [{"b64": quoted(json_values.to_base64(item)["b64"])} for item in items]
    if dtype.kind == "O":
        return [quoted(json_values.to_text(item)) for item in items]
    if dtype.kind == "b":
        return ["true" if item else "false" for item in items]
    if dtype.kind in "iu" and dtype != np.uint16:
        return [str(item) for item in items]
    kind = name_of(dtype).removeprefix("DT_").lower()
    raise InvalidArgumentError(f"Failed to write JSON value for tensor type: {kind}")


def _floats(flat: np.ndarray, items: list[float], digits: int) -> list[str]:
    """Numbers with six significant digits, or with `digits` if six do not read back."""
    texts = ("%g " * len(items) % tuple(items)).split()
    exact = (np.array(list(map(float, texts)), flat.dtype) == flat).tolist()
    if not all(exact):
        longer = (f"%.{digits}g " * len(items) % tuple(items)).split()
        texts = [text if good else long for text, good, long in zip(texts, exact, longer, strict=True)]
    return [text if "." in text or "e" in text else _WORDS.get(text, f"{text}.0") for text in texts]
