"""JSON values in error messages, in TensorFlow Serving's words."""

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np


def quote(value: Any) -> str:
    """A value in an error message: arrays on one line, until a NaN or the token past 256 bytes."""
    text = ""
    for token in _tokens(value, "\n"):
        text += token
        if not token or len(text.encode("utf-8", "replace")) > 256:
            break
    return text


def _tokens(value: Any, line: str) -> Iterator[str]:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not value or not isinstance(value, list | dict):
        yield _number(value) if _is_number(value) else json.dumps(value, ensure_ascii=False)
        return
    inner, comma, ends = ("", ", ", "[]") if isinstance(value, list) else (f"{line}    ", ",", "{}")
    for index, item in enumerate(value):
        yield f"{comma if index else ends[0]}{inner}"
        if isinstance(value, dict):
            yield f"{json.dumps(item, ensure_ascii=False)}: "
        yield from _tokens(value[item] if isinstance(value, dict) else item, inner or line)
    yield ends[1] if isinstance(value, list) else f"{line}{ends[1]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: int | float) -> str:
    """A number as RapidJSON writes it: integers of 64 bits, else the shortest decimal; "" if not finite."""
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return str(value)
    if not math.isfinite(value):
        return ""
    sign, digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    assert isinstance(exponent, int)
    text, point = "".join(map(str, digits)), len(digits) + exponent  # 0.text times 10 ** point
    if len(text) <= point <= 21:
        text = f"{text.ljust(point, '0')}.0"
    elif 0 < point <= 21:
        text = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{text}"
    else:
        text = f"{text[0]}{'.' if text[1:] else ''}{text[1:]}e{point - 1}"
    return f"{'-' if sign else ''}{text}"


def json_type(value: Any) -> str:
    """The name of a JSON value's type in error messages."""
    if isinstance(value, bool):
        return str(value)
    names = {type(None): "Null", dict: "Object", list: "Array", np.ndarray: "Array", str: "String"}
    return names.get(type(value), "Number")
