"""The REST API: what a request target means, and the document that answers it."""

import json
import re
import time
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from google.protobuf import json_format
from google.protobuf.message import Message

from keras_bn_serving.local_server import json_reader, json_writer, metrics, responses, rest_methods
from keras_bn_serving.local_server.catalog import MonitoringConfig, read
from keras_bn_serving.local_server.flags import Flags
from keras_bn_serving.local_server.manager import AVAILABLE, Manager, State
from keras_bn_serving.local_server.status import from_exception
from keras_bn_serving.wire.errors import InvalidArgumentError
from keras_bn_serving.wire.status import HTTP_STATUS

_VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_PATTERNS = {
    "POST": rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<verb>classify|regress|predict)",
    "GET": rf"/v1/models(?:/(?P<name>[^/:]+){_VERSION}(?P<metadata>/metadata)?)?",
}
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_JSON = "application/json"
_METRICS_PATH = "/monitoring/prometheus/metrics"
_MAX_INFLATED = 100 << 20


class Request(NamedTuple):
    """An HTTP request: `target` is the path as received and the query, header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    old: bool = False  # HTTP/1.0


class Response(NamedTuple):
    """An HTTP response; `close` ends the connection."""

    status: int
    content_type: str
    body: bytes = b""
    headers: Mapping[str, str] = {}
    close: bool = False


def page(status: int, title: str) -> Response:
    """The page for what no handler ever sees, worded as the real server's HTTP library words it."""
    head, body = f"<TITLE>{status} {title}</TITLE>", f"<H1>{title}</H1>"
    text = f"<HTML><HEAD>\n{head}\n</HEAD><BODY>\n{body}\n</BODY></HTML>\n"
    return Response(status, "text/html", text.encode(), close=True)


class RestApi:
    """Answers HTTP requests. Thread-safe."""

    def __init__(self, manager: Manager, flags: Flags) -> None:
        self._manager = manager
        self._flags = flags
        self._metrics_path = ""
        if flags.monitoring_config_file:
            prometheus = read(flags.monitoring_config_file, MonitoringConfig()).prometheus_config
            self._metrics_path = (prometheus.path or _METRICS_PATH) if prometheus.enable else ""

    def __call__(self, request: Request) -> Response:
        """The response to any request."""
        if re.search(r"%(?![0-9A-Fa-f]{2})|[^\x21-\x7e]", request.target):
            return page(400, "Bad Request")
        if request.method in ("TRACE", "CONNECT"):
            return page(501, "Not Implemented")
        if re.match(r"/v1/", request.target, re.IGNORECASE):
            return self._answer(request)
        path, query, _ = request.target.partition("?")
        if path == self._metrics_path:
            refusal = f"Unexpected path: {request.target}. Should be {path}" if query else ""
            text = refusal or metrics.exposition()
            return Response(400 if query else 200, "text/plain", text.encode("utf-8", "replace"))
        if self._flags.enable_admin_endpoints and path in ("/healthz", "/readyz", "/models"):
            return self._admin(path)
        return page(404, "Not Found")

    def _answer(self, request: Request) -> Response:
        started, name, verb, code, body = time.perf_counter(), "", "", "OK", b""
        try:
            if request.method == "OPTIONS":
                if not re.search("https?://", request.headers.get("origin", "")):
                    raise InvalidArgumentError("")
            else:
                match = re.fullmatch(_PATTERNS.get(request.method, "(?!)"), request.target, re.IGNORECASE)
                if match:
                    name, verb = _decoded(request, match["name"]) or "", match.groupdict().get("verb", "")
                body = self._handle(request, match, name, verb)
        except Exception as failure:
            error = from_exception(failure)
            code = error.code
            if message := str(error):
                body = json_writer.error(message)
        metrics.record("REST", verb, name, code, started, self._flags.log_requests)
        headers = _CORS if self._flags.rest_api_enable_cors_support else {}
        kind = "text/html" if request.method == "OPTIONS" else _JSON
        return Response(HTTP_STATUS[code], kind, body, headers)

    def _handle(self, request: Request, match: re.Match[str] | None, name: str, verb: str) -> bytes:
        # The pattern ignores case, the verb does not.
        if match is None or verb not in ("", *rest_methods.VERBS):
            raise _malformed(request)
        number = None if match["version"] is None else int(match["version"].lstrip("0")[:20] or 0)
        if number is not None and number >= 2**63:
            raise InvalidArgumentError("")
        label = _decoded(request, match["label"])
        if verb:
            body = _body(request, self._flags.rest_api_max_body_bytes)
            if not body:
                raise InvalidArgumentError("JSON Parse error: The document is empty")
            document, signature_name = rest_methods.check(json_reader.parse(body))
            with self._manager.use(name, number, label) as (_, model):
                timeout_ms = max(self._flags.rest_api_timeout_in_ms, 0)
                return rest_methods.VERBS[verb](model, signature_name, document, timeout_ms)
        if not name:
            raise InvalidArgumentError("Missing model name in request.")
        if match["metadata"] != "/metadata":
            return f"{_text(responses.status_response(self._manager, name, number))}\n".encode()
        with self._manager.use(name, number, label) as (number, model):
            signatures = _text(responses.signature_map(model))
        spec = _text(responses.spec_of(name, number))
        metadata = f'"metadata": {{"signature_def": {signatures}\n}}'
        return f'{{\n"model_spec":{spec}\n,\n{metadata}\n}}\n'.encode()

    def _admin(self, path: str) -> Response:
        """Endpoints that TF Serving lacks: `/healthz` answers while the process lives, `/readyz` is 503 until
        every model has an available version, `/models` lists models, states and labels."""
        models = self._manager.models()
        ready = all(any(one.state == AVAILABLE for one in versions) for versions, _ in models.values())
        status = 503 if path == "/readyz" and not ready else 200
        document: Any = {"status": {"/healthz": "alive"}.get(path, "ready" if ready else "not ready")}
        if path == "/models":
            document = {"models": []}
            for name, (versions, labels) in models.items():
                listed = [{"version": one.number, "state": State.Name(one.state)} for one in versions]
                document["models"].append({"name": name, "versions": listed, "labels": labels})
        return Response(status, _JSON, json.dumps(document).encode())


def _malformed(request: Request) -> InvalidArgumentError:
    return InvalidArgumentError(f"Malformed request: {request.method} {request.target}")


def _decoded(request: Request, text: str | None) -> str | None:
    """A part of the path with its escapes resolved; refused if it is not UTF-8, which no model's name is."""
    try:
        return None if text is None else unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise _malformed(request) from None


def _text(message: Message) -> str:
    return json_format.MessageToJson(
        message,
        indent=1,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        ensure_ascii=False,
    )


def _body(request: Request, limit: int) -> bytes:
    """The body; inflated if it is gzip, where all but exactly one whole member within the limit is empty."""
    if "gzip" not in request.headers.get("content-encoding", ""):
        return request.body
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        body = inflater.decompress(request.body, min(limit, _MAX_INFLATED))
    except zlib.error:
        return b""
    return body if inflater.eof and not inflater.unused_data else b""
