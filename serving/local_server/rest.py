"""The REST API: what a request target means, and what the answer to it is."""

from __future__ import annotations

import logging
import re
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from serving.local_server import admin, grpc_services, inference, metrics, rest_predict
from serving.local_server.json_conformant import ParseError
from serving.local_server.json_writer import encode, error_body
from serving.local_server.manager import Manager
from serving.local_server.observe import Observer
from serving.local_server.servable import Servable
from serving.local_server.status import HTTP_STATUS, StatusError, from_exception, invalid_argument

_VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_INFERENCE = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<verb>classify|regress|predict)", re.IGNORECASE
)
_MODEL = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+){_VERSION}(?P<metadata>/metadata)?)?", re.IGNORECASE)
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_JSON = "application/json"
_KNOWN_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}
_MAX_INFLATED = 100 << 20
_log = logging.getLogger(__name__)


class Request(NamedTuple):
    """An HTTP request: `target` as received, header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class Response(NamedTuple):
    """An HTTP response; `close` ends the connection."""

    status: int
    content_type: str
    body: bytes = b""
    headers: Mapping[str, str] = {}
    close: bool = False


def page(status: int, title: str) -> Response:
    """The page for what no handler ever sees, worded as the real server's HTTP library words it."""
    body = (
        f"<HTML><HEAD>\n<TITLE>{status} {title}</TITLE>\n</HEAD><BODY>\n<H1>{title}</H1>\n</BODY></HTML>\n"
    ).encode()
    return Response(status, "text/html", body, close=True)


class RestApi:
    """Answers HTTP requests. Thread-safe.

    Args:
        manager: the models.
        observe: told of every request under /v1/.
        timeout_ms: limit of a request's computation; 0: none.
        cors: whether every reply carries CORS headers.
        max_body: largest body after unzipping, in bytes.
        metrics_path: where the Prometheus metrics are; empty: nowhere.
        admin: whether the endpoints of `admin` are served.
    """

    def __init__(
        self,
        manager: Manager[Servable],
        observe: Observer,
        timeout_ms: int = 30000,
        cors: bool = False,
        max_body: int = 2**31 - 1,
        metrics_path: str = "",
        admin: bool = False,
    ) -> None:
        self._manager = manager
        self._observe = observe
        self._timeout_ms = max(timeout_ms, 0)
        self._cors = _CORS if cors else {}
        self._max_inflated = min(max_body, _MAX_INFLATED)
        self._metrics_path = metrics_path
        self._admin = admin

    def __call__(self, request: Request) -> Response:
        """The response to any request."""
        if request.method not in _KNOWN_METHODS:
            return page(501, "Not Implemented")
        if re.search(r"%(?![0-9A-Fa-f]{2})|[^\x21-\x7e]", request.target):
            return page(400, "Bad Request")
        if re.match(r"/v1/", request.target, re.IGNORECASE):
            return self._answer(request)
        return self._beside_the_api(request) or page(404, "Not Found")

    def _beside_the_api(self, request: Request) -> Response | None:
        path, query, _ = request.target.partition("?")
        if path == self._metrics_path:
            if query:
                text = f"Unexpected path: {request.target}. Should be {path}"
                return Response(400, "text/plain", text.encode())
            return Response(200, "text/plain", metrics.exposition().encode())
        found = admin.answer(path, self._manager) if self._admin and request.method == "GET" else None
        return Response(found[0], _JSON, found[1]) if found else None

    def _answer(self, request: Request) -> Response:
        started, name, api = time.perf_counter(), "", ""
        if request.method == "OPTIONS":
            allowed = re.search("https?://", request.headers.get("origin", ""))
            code = "OK" if allowed else "INVALID_ARGUMENT"
            response = Response(HTTP_STATUS[code], "text/html; charset=ISO-8859-1")
        else:
            match = _match(request)
            if match:
                name, api = _decoded(match["name"]) or "", match.groupdict().get("verb") or ""
            try:
                code, body = "OK", self._handle(request, match)
            except Exception as failure:
                error = from_exception(failure)
                if error is not failure:
                    _log.exception("%s %s failed", request.method, request.target)
                code, body = error.code, error_body(error.message) if error.message else b""
            response = Response(HTTP_STATUS[code], _JSON, body)
        self._observe("REST", api, name, code, started)
        return response._replace(headers=self._cors)

    def _handle(self, request: Request, match: re.Match[str] | None) -> bytes:
        if match is None:
            raise _malformed(request)
        name, number, label = _address(match)
        if request.method == "POST":
            answer = _VERBS.get(match["verb"])
            if answer is None:  # the pattern ignores case, the verb does not
                raise _malformed(request)
            return self._infer(answer, (name, number, label), _body(request, self._max_inflated))
        if not name:
            raise invalid_argument("Missing model name in request.")
        if match["metadata"] == "/metadata":
            return self._metadata(name, number, label)
        return _proto_json(grpc_services.status_response(self._manager, name, number)) + b"\n"

    def _infer(self, answer: _Answer, address: _Address, body: bytes) -> bytes:
        try:
            document, signature_name = rest_predict.read(body)
        except ParseError as error:
            raise invalid_argument(str(error)) from None
        with self._manager.use(*address) as (_, model):
            return encode(answer(model, signature_name, document, self._timeout_ms))

    def _metadata(self, name: str, number: int | None, label: str | None) -> bytes:
        with self._manager.use(name, number, label) as (number, model):
            signatures = grpc_services.signature_map(model)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        grpc_services.fill_spec(response.model_spec, name, number)
        spec = _proto_json(response.model_spec)
        return b'{\n"model_spec":%s\n,\n"metadata": {"signature_def": %s\n}\n}\n' % (
            spec,
            _proto_json(signatures),
        )


def _match(request: Request) -> re.Match[str] | None:
    patterns = {"POST": _INFERENCE, "GET": _MODEL}
    pattern = patterns.get(request.method)
    return pattern.fullmatch(request.target) if pattern else None


def _malformed(request: Request) -> StatusError:
    return invalid_argument(f"Malformed request: {request.method} {request.target}")


_Address = tuple[str, int | None, str | None]
_Answer = Callable[[Any, str, Any, int], str]
_VERBS: dict[str, _Answer] = {
    "predict": rest_predict.predict,
    "classify": lambda *arguments: rest_predict.examples_method(inference.CLASSIFY, *arguments),
    "regress": lambda *arguments: rest_predict.examples_method(inference.REGRESS, *arguments),
}


def _decoded(text: str | None) -> str | None:
    return None if text is None else unquote_to_bytes(text).decode("utf-8", "surrogateescape")


def _address(match: re.Match[str]) -> _Address:
    """The model's name (empty if there is none) and the version or label in a target."""
    name, version, label = map(_decoded, match.group("name", "version", "label"))
    if version is not None and int(version[-20:]) >= 2**63:
        raise invalid_argument("")  # an empty body: the original gives up before it has made an error
    return name or "", None if version is None else int(version), label


def _proto_json(message: Any) -> bytes:
    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=1
    ).encode()


def _body(request: Request, limit: int) -> bytes:
    """The body, inflated if it is gzip; what is not exactly one whole gzip member within the limit counts as
    empty."""
    if "gzip" not in request.headers.get("content-encoding", ""):
        return request.body
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        body = inflater.decompress(request.body, limit)
    except zlib.error:
        return b""
    return body if inflater.eof and not inflater.unused_data else b""
