"""Whether an answer agrees with a golden vector, by the rules of comparison the vectors carry."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from tests.serving.golden import wire


def collapse(text: str) -> str:
    """`text` with every run of white space made one blank."""
    return " ".join(text.split())


def rest(vector: dict[str, Any], answer: dict[str, Any], put_back: Any) -> list[str]:
    """The differences between a REST answer and what a vector (or step) expects; none if they agree."""
    expected, loose = vector["response"], vector.get("loose", [])
    differences = []
    if answer["status"] != expected["status"]:
        differences.append(f"status {answer['status']} instead of {expected['status']}")
    if "headers" not in loose:
        got = {name: value.partition(";")[0] for name, value in answer["headers"].items()}
        want = {name: value.partition(";")[0] for name, value in expected["headers"].items()}
        if got != want:
            differences.append(f"headers {got} instead of {want}")
    if "body" in loose:
        return differences
    want_body = (
        base64.b64decode(expected["body_base64"])
        if "body_base64" in expected
        else expected.get("body", "").encode()
    )
    got_body = put_back(answer["body"])
    exact = vector.get("exact_bytes")
    same = got_body == want_body if exact else _same_body(got_body, want_body, vector)
    if not same:
        differences.append(f"body {got_body[:400]!r} instead of {want_body[:400]!r}")
    return differences


def _same_body(got: bytes, want: bytes, vector: dict[str, Any]) -> bool:
    loose, numbers = vector.get("loose", []), vector.get("numbers", "kind")
    try:
        got_value, want_value = _parse(got, numbers), _parse(want, numbers)
    except ValueError:
        return got == want
    if (
        isinstance(want_value, dict)
        and isinstance(got_value, dict)
        and {*want_value} == {*got_value} == {"error"}
    ):
        if "error_text" in loose:
            return got_value["error"].startswith(vector.get("error_prefix", ""))
        return collapse(got_value["error"]) == collapse(want_value["error"])
    return _equal(got_value, want_value, numbers)


class _Literal(str):
    """The text of a number."""


def _parse(body: bytes, numbers: str) -> Any:
    text = body.decode("utf-8", "surrogateescape")
    if numbers == "text":
        return json.loads(text, parse_float=_Literal, parse_int=_Literal, parse_constant=_Literal)
    return json.loads(text)


def _equal(got: Any, want: Any, numbers: str) -> bool:
    if isinstance(want, dict):
        return (
            isinstance(got, dict)
            and got.keys() == want.keys()
            and all(_equal(got[key], want[key], numbers) for key in want)
        )
    if isinstance(want, list):
        return (
            isinstance(got, list)
            and len(got) == len(want)
            and all(_equal(a, b, numbers) for a, b in zip(got, want, strict=True))
        )
    if isinstance(want, float) and isinstance(got, float):
        if math.isnan(want) or math.isnan(got):
            return math.isnan(want) and math.isnan(got)
        return got == want and math.copysign(1, got) == math.copysign(1, want)
    if numbers == "value" and not isinstance(want, bool) and isinstance(want, int | float):
        return not isinstance(got, bool) and got == want
    return type(got) is type(want) and got == want


def grpc(vector: dict[str, Any], answer: dict[str, Any], put_back: Any) -> list[str]:
    """The differences between a gRPC answer and what a vector (or step) expects; none if they agree."""
    expected, loose, method = vector["response"], vector.get("loose", []), vector["request"]["method"]
    if answer["code"] != expected["code"]:
        return [f"code {answer['code']} ({answer['details'][:200]}) instead of {expected['code']}"]
    if expected["code"] != "OK":
        got, want = collapse(put_back(answer["details"].encode()).decode()), collapse(expected["details"])
        return (
            []
            if "error_text" in loose or got == want
            else [f"details {got[:400]!r} instead of {want[:400]!r}"]
        )
    if "body" in loose or method.startswith("/"):
        return []
    got_bytes = wire.canonical_bytes(method, answer["bytes"], put_back)
    want_bytes = wire.expected_bytes(method, expected)
    if got_bytes != want_bytes:
        return [f"response {got_bytes[:400]!r} instead of {want_bytes[:400]!r}"]
    return []
