"""Sending the requests of the golden vectors exactly as they are written down, and reading the answers."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

_RESPONSES = {
    "Predict": predict_pb2.PredictResponse,
    "Classify": classification_pb2.ClassificationResponse,
    "Regress": regression_pb2.RegressionResponse,
    "MultiInference": inference_pb2.MultiInferenceResponse,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataResponse,
    "GetModelStatus": get_model_status_pb2.GetModelStatusResponse,
    "HandleReloadConfigRequest": model_management_pb2.ReloadConfigResponse,
}
_REQUESTS = {
    "HandleReloadConfigRequest": model_management_pb2.ReloadConfigRequest,
}
_MODEL_SERVICE = {"GetModelStatus", "HandleReloadConfigRequest"}
_NOTED_HEADERS = ("content-type", "content-encoding", "server")


def rest(address: tuple[str, int], request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a `rest` request, on a connection of its own, in the form of the vectors."""
    body, headers = _body(request), dict(request.get("headers", {}))
    if request.get("gzip"):
        body = gzip.compress(body or b"")
        headers.setdefault("Content-Encoding", "gzip")
    if request.get("chunked"):
        headers["Transfer-Encoding"] = "chunked"
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in _halves(body)) + b"0\r\n\r\n"
    elif body is not None or request["method"] in ("POST", "PUT"):
        headers.setdefault("Content-Length", str(len(body or b"")))
    version = request.get("http", "1.1")
    lines = [f"{request['method']} {request['path']} HTTP/{version}"]
    if version != "1.0":
        headers.setdefault("Host", "localhost")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + (body or b""))
        response = http.client.HTTPResponse(connection, method=request["method"])
        response.begin()
        answer = response.read()
    noted = {
        name.lower(): value
        for name, value in response.getheaders()
        if name.lower() in _NOTED_HEADERS or name.lower().startswith("access-control")
    }
    return {"status": response.status, "headers": noted, "body": answer}


def _body(request: dict[str, Any]) -> bytes | None:
    if "body_base64" in request:
        return base64.b64decode(request["body_base64"])
    if "body_generator" in request:
        return "".join(piece * count for piece, count in request["body_generator"]).encode()
    return request["body"].encode() if "body" in request else None


def _halves(body: bytes | None) -> list[bytes]:
    body = body or b""
    middle = len(body) // 2
    return [piece for piece in (body[:middle], body[middle:]) if piece]


def grpc_call(address: tuple[str, int], request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a `grpc` request: code, details, and the response's bytes."""
    method = request["method"]
    service = "ModelService" if method in _MODEL_SERVICE else "PredictionService"
    path = method if method.startswith("/") else f"/tensorflow.serving.{service}/{method}"
    target = request.get("target", "{}:{}".format(*address))
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target, options) as channel:
        try:
            response = channel.unary_unary(path)(
                _message(request), timeout=request.get("timeout", 60), wait_for_ready=True
            )
        except grpc.RpcError as error:
            return {"code": error.code().name, "details": error.details()}  # type: ignore[attr-defined]
    return {"code": "OK", "details": "", "bytes": response}


def _message(request: dict[str, Any]) -> bytes:
    if "request_base64" in request:
        return base64.b64decode(request["request_base64"])
    # The vectors carry bytes wherever they can; what is left names files, whose place is known only now.
    kind = _REQUESTS.get(request["method"]) or _request_type(request["method"])
    return json_format.ParseDict(request.get("request", {}), kind()).SerializeToString()


def _request_type(method: str) -> Any:
    name = {"Classify": "Classification", "Regress": "Regression"}.get(method, method)
    modules = (predict_pb2, classification_pb2, regression_pb2, inference_pb2)
    modules += (get_model_metadata_pb2, get_model_status_pb2)
    return next(getattr(module, f"{name}Request") for module in modules if hasattr(module, f"{name}Request"))


def expected_bytes(method: str, response: dict[str, Any]) -> bytes:
    """The response of a vector as bytes that are equal for equal responses."""
    if "response_base64" in response:
        return base64.b64decode(response["response_base64"])
    return _canonical(json_format.ParseDict(response["response"], _RESPONSES[method]()))


def canonical_bytes(method: str, data: bytes, put_back: Callable[[bytes], bytes]) -> bytes:
    """A response as received, with the names of files put back, as bytes that are equal for equal
    responses."""
    message = _RESPONSES[method].FromString(data)
    if put_back(data) != data:
        text = json_format.MessageToJson(message, preserving_proto_field_name=True)
        message = json_format.Parse(put_back(text.encode()), _RESPONSES[method]())
    return _canonical(message)


def _canonical(message: Any) -> bytes:
    if isinstance(message, get_model_metadata_pb2.GetModelMetadataResponse):
        # Its maps are serialized already, in an Any, in an order of their own.
        return json.dumps(json_format.MessageToDict(message), sort_keys=True).encode()
    return message.SerializeToString(deterministic=True)
