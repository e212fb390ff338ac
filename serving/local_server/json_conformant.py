"""A JSON parser for what Python's `json` cannot do: any depth of nesting, `Inf` and `-NaN`, the real server's
errors.

Slow and exact; json_reader calls it for documents that `json` refuses.
"""

from __future__ import annotations

import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from math import inf, isinf, nan
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]*)?")
_WORD = re.compile(r"true|false|null|-?(?:NaN|Infinity|Inf)")
_WORDS = {"true": True, "false": False, "null": None, "NaN": nan, "-NaN": nan, "Inf": inf, "Infinity": inf}
_WORDS.update({"-Inf": -inf, "-Infinity": -inf})


class ParseError(ValueError):
    """The text is no JSON; the message says why and where."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"JSON Parse error: {reason} at offset: {offset}")


def parse(body: bytes) -> Any:
    """The value at the start of `body`: dict, list, str, int, float, bool or None. What follows it is
    ignored.

    Raises:
        ParseError: it is no JSON.
    """
    text = body.decode("utf-8", "surrogateescape")
    position = _skip(text, 0)
    if position == len(text) or text[position] == "\0":
        raise ParseError("The document is empty.", position)
    open_values: list[Any] = []  # the containers around the current position
    keys: list[str | None] = []  # for each of them, the key whose value comes next
    while True:
        character = text[position : position + 1]
        if character in ("{", "["):
            value: Any = {} if character == "{" else []
            position = _skip(text, position + 1)
            if text[position : position + 1] == ("}" if character == "{" else "]"):
                position += 1
            else:
                open_values.append(value)
                keys.append(None)
                if character == "{":
                    keys[-1], position = _key(text, position)
                continue
        else:
            value, position = _scalar(text, position)
        # A value is complete: put it into its container, and close what ends here.
        while open_values:
            container = open_values[-1]
            if isinstance(container, dict):
                container.setdefault(keys[-1], value)
            else:
                container.append(value)
            position = _skip(text, position)
            character = text[position : position + 1]
            if character == ",":
                position = _skip(text, position + 1)
                if isinstance(container, dict):
                    keys[-1], position = _key(text, position)
                break
            if character != ("}" if isinstance(container, dict) else "]"):
                what = (
                    "'}' after an object member"
                    if isinstance(container, dict)
                    else "']' after an array element"
                )
                raise ParseError(f"Missing a comma or {what}.", position)
            position += 1
            value = open_values.pop()
            keys.pop()
        else:
            return value


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _key(text: str, position: int) -> tuple[str, int]:
    if text[position : position + 1] != '"':
        raise ParseError("Missing a name for object member.", position)
    key, position = _string(text, position)
    position = _skip(text, position)
    if text[position : position + 1] != ":":
        raise ParseError("Missing a colon after a name of object member.", position)
    return key, _skip(text, position + 1)


def _scalar(text: str, position: int) -> tuple[Any, int]:
    if text[position : position + 1] == '"':
        return _string(text, position)
    if word := _WORD.match(text, position):
        return _WORDS[word.group()], word.end()
    number = _NUMBER.match(text, position)
    if number is None:
        raise ParseError("Invalid value.", position)
    literal, (fraction, exponent) = number.group(), number.groups()
    if fraction == ".":
        raise ParseError("Miss fraction part in number.", number.end())
    if exponent and not exponent[-1].isdigit():
        raise ParseError("Miss exponent in number.", number.end())
    if isinf(float(literal)):
        raise ParseError("Number too big to be stored in double.", position)
    return (float if fraction or exponent else int)(literal), number.end()


def _string(text: str, position: int) -> tuple[str, int]:
    try:
        value, end = scanstring(text, position + 1, True)
    except ValueError as error:
        reason = (
            "Missing a closing quotation mark" if "Unterminated" in str(error) else "Invalid escape character"
        )
        raise ParseError(f"{reason} in string.", position) from None
    # Raw bytes that are not UTF-8 are lone surrogates too, and pass; those written as escapes do not.
    if re.search(r"[\ud800-\udfff]", value) and not re.search(r"[\ud800-\udfff]", text[position:end]):
        raise ParseError("The surrogate pair in string is invalid.", position)
    return value, end
