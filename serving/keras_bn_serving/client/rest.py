"""The REST form of the calls: JSON in and out."""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson

from keras_bn_serving.client.exchange import Configuration, Exchange, Features, Target
from keras_bn_serving.client.features import feature_values
from keras_bn_serving.client.metadata import ModelMetadata, Signature, TensorSpec, VersionStatus
from keras_bn_serving.wire import json_values
from keras_bn_serving.wire.dtypes import numpy_dtype
from keras_bn_serving.wire.errors import InternalError, InvalidArgumentError, UnimplementedError


def loads(body: bytes) -> Any:
    """Parse JSON as TF Serving writes it: bare NaN and Infinity, strings that need not be UTF-8."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(json_values.to_text(body))
    except ValueError as error:
        raise InternalError(f"the server's answer is not JSON ({error}): {body[:200]!r}") from error


# The dtypes that TF Serving neither reads as JSON nor writes, and the kinds of what it writes for others.
_NOT_IN_JSON = ("DT_HALF", "DT_BFLOAT16", "DT_UINT16", "DT_COMPLEX64", "DT_COMPLEX128")
_JSON_KINDS = {"i": "iu", "u": "iu", "b": "b"}


class RestCodec:
    """Codec for `http://` and `https://`; `prefix` is a path put before `/v1`."""

    def __init__(self, prefix: str = "") -> None:
        self._root = f"{prefix.rstrip('/')}/v1/models"

    def predict(
        self,
        target: Target,
        name: str | None,
        signature: Signature,
        inputs: dict[str, np.ndarray],
        outputs: Sequence[str],
    ) -> Exchange:
        """See Codec. Columnar, so that any shapes travel. REST has no output filter: it is applied here."""
        missing = sorted(set(signature.inputs) - set(inputs))
        if missing:
            raise InvalidArgumentError(
                f"REST does not know default inputs: pass {', '.join(missing)}, or use gRPC"
            )
        columns = {key: _column(key, array, signature.inputs[key]) for key, array in inputs.items()}

        def read(body: bytes) -> dict[str, np.ndarray]:
            found = _member(body, "outputs")
            if len(signature.outputs) == 1:
                found = dict.fromkeys(signature.outputs, found)
            return {
                key: _array(key, found[key], spec)
                for key, spec in signature.outputs.items()
                if not outputs or key in outputs
            }

        specs = [*signature.inputs.items(), *signature.outputs.items()]
        unknown = ", ".join(f"{key}: {spec}" for key, spec in specs if spec.dtype in _NOT_IN_JSON)
        hint = f"TF Serving has no JSON for {unknown}; use a grpc:// address" if unknown else ""
        return Exchange(f"{self._path(target)}:predict", _request(name, inputs=columns), read, hint=hint)

    def examples(
        self,
        method: str,
        target: Target,
        name: str | None,
        examples: Sequence[Features],
        context: Features | None,
    ) -> Exchange:
        """See Codec."""
        body: dict[str, Any] = {"examples": [_example(example) for example in examples]}
        if context is not None:
            body["context"] = _example(context)

        def read(reply: bytes) -> Any:
            results = _member(reply, "results")
            if method == "regress":
                return np.array(results, np.float32)
            return [[(label, score) for label, score in example] for example in results]

        return Exchange(f"{self._path(target)}:{method}", _request(name, **body), read)

    def status(self, target: Target) -> Exchange:
        """See Codec."""

        def read(body: bytes) -> list[VersionStatus]:
            return [
                VersionStatus(
                    int(entry["version"]),
                    entry["state"],
                    entry["status"]["error_code"],
                    entry["status"]["error_message"],
                )
                for entry in _member(body, "model_version_status")
            ]

        return Exchange(self._path(target), None, read)

    def metadata(self, target: Target) -> Exchange:
        """See Codec."""

        def read(body: bytes) -> ModelMetadata:
            spec = _member(body, "model_spec")
            signatures = _member(body, "metadata")["signature_def"]["signature_def"]
            return ModelMetadata(
                spec["name"],
                int(spec["version"]),
                {key: _signature(value) for key, value in signatures.items()},
            )

        return Exchange(f"{self._path(target)}/metadata", None, read)

    def reload(self, config: Configuration) -> Exchange:
        """Refuse: TF Serving has no REST call for it."""
        raise UnimplementedError("TF Serving reloads its configuration over gRPC only: use a grpc:// address")

    def _path(self, target: Target) -> str:
        path = f"{self._root}/{quote(target.model, safe='')}"
        if target.version is not None:
            return f"{path}/versions/{target.version}"
        return path if target.label is None else f"{path}/labels/{quote(target.label, safe='')}"


def _request(name: str | None, **body: Any) -> bytes:
    return json_values.dumps(body if name is None else {"signature_name": name, **body})


def _member(body: bytes, key: str) -> Any:
    answer = loads(body)
    if not isinstance(answer, dict) or key not in answer:
        raise InternalError(
            f"the answer has no {key!r}; is this TF Serving's REST port? It begins {body[:200]!r}"
        )
    return answer[key]


def _column(name: str, array: np.ndarray, spec: TensorSpec) -> Any:
    if 0 in array.shape[:-1]:
        raise InvalidArgumentError(f"JSON cannot carry the shape {array.shape} of input {name!r}: use gRPC")
    if spec.dtype == "DT_STRING":
        encoded = np.empty(array.size, object)
        encoded[:] = [json_values.to_base64(item) for item in array.ravel()]
        return encoded.reshape(array.shape).tolist()
    if array.dtype.kind == "c":
        raise InvalidArgumentError(f"JSON cannot carry the complex input {name!r}: use gRPC")
    # orjson reads arrays of C order and NumPy's own dtypes; half precision goes as the float32 it equals.
    dtype = np.float32 if spec.dtype in ("DT_BFLOAT16", "DT_HALF") else None
    return json_values.numbers(np.asarray(array, dtype, order="C"))


def _example(features: Features) -> dict[str, Any]:
    example = {}
    for name, value in features.items():
        values = feature_values(name, value)
        example[name] = (
            [json_values.to_base64(item) for item in values]
            if values.dtype == object
            else json_values.numbers(values)
        )
    return example


def _array(name: str, value: Any, spec: TensorSpec) -> np.ndarray:
    if spec.dtype == "DT_STRING":
        nested = np.array(value, object)
        strings = np.empty(nested.size, object)
        strings[:] = [_output_bytes(item) for item in nested.ravel()]
        return strings.reshape(nested.shape)
    array = np.asarray(value)
    dtype = numpy_dtype(spec.dtype)
    if dtype.kind == "u" and array.dtype.kind == "f":  # NumPy's common type of 2**63 and 1
        array = np.asarray(value, object)
        if all(type(item) is int for item in array.flat):
            array = array.astype(dtype)
    if array.size and array.dtype.kind not in _JSON_KINDS.get(dtype.kind, "iuf"):
        raise InternalError(f"output {name!r} should be {spec}, and the server sent {_first(value)!r}")
    array = array.astype(dtype)
    if array.size == 0 and spec.shape is not None and None not in spec.shape[1:]:
        array = array.reshape(0, *spec.shape[1:])  # JSON's [] has lost the other dimensions
    return array


def _first(value: Any) -> Any:
    while isinstance(value, list):
        value = value[0]
    return value


def _output_bytes(item: Any) -> bytes:
    if isinstance(item, dict):
        return json_values.from_base64(item)
    return json_values.from_text(item)


def _signature(message: dict[str, Any]) -> Signature:
    defaults = message.get("defaults", {})
    return Signature(
        {name: _tensor_spec(info, name in defaults) for name, info in message.get("inputs", {}).items()},
        {name: _tensor_spec(info) for name, info in message.get("outputs", {}).items()},
        message.get("method_name", ""),
    )


def _tensor_spec(info: dict[str, Any], has_default: bool = False) -> TensorSpec:
    shape = info["tensor_shape"]
    sizes = tuple(int(dim["size"]) for dim in shape["dim"])
    return TensorSpec(
        info["dtype"],
        None if shape["unknown_rank"] else tuple(None if size < 0 else size for size in sizes),
        has_default,
    )
