"""The methods of REST: parsed documents in, the bytes of documents out."""

from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2
from tensorflow_serving.apis import input_pb2

from keras_bn_serving.local_server import inference, json_writer, rest_tensors
from keras_bn_serving.local_server.inference import Model
from keras_bn_serving.local_server.quoting import json_type, quote
from keras_bn_serving.wire.errors import InvalidArgumentError, ServingError
from keras_bn_serving.wire.json_values import is_base64


def check(document: Any) -> tuple[dict[str, Any], str]:
    """The document of a request, and the signature name in it, empty for the default."""
    if not isinstance(document, dict):
        raise _refusal(document, "Is not object")
    signature_name = document.get("signature_name", "")
    if not isinstance(signature_name, str):
        raise _refusal(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return document, signature_name


def _refusal(document: Any, why: str) -> ServingError:
    return InvalidArgumentError(f"JSON Value: {quote(document)} {why}")


def _predict(model: Model, signature_name: str, document: dict[str, Any], timeout_ms: int) -> bytes:
    key = signature_name or inference.DEFAULT_SIGNATURE
    if key not in model.signatures:
        raise InvalidArgumentError(f'Serving signature name: "{key}" not found in signature def')
    signature = model.signatures[key]
    if not signature.inputs:
        raise InvalidArgumentError(f"Failed to get input map for signature: {signature_name or 'DEFAULT'}")
    if "instances" in document:
        if "inputs" in document:
            raise _refusal(
                document,
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
            )
        instances = _array(document, "instances", "", "No values in 'instances' array")
        inputs = rest_tensors.rows(instances, signature.inputs)
        outputs = inference.predict(model, signature, inputs, (), timeout_ms)
        return _by_row(outputs, signature)
    if "inputs" not in document:
        raise InvalidArgumentError("Missing 'inputs' or 'instances' key")
    inputs = rest_tensors.columns(document["inputs"], signature.inputs)
    outputs = inference.predict(model, signature, inputs, (), timeout_ms)
    values = {alias: json_writer.values(array, alias) for alias, array in outputs.items()}
    return json_writer.document("outputs", values if len(values) > 1 else next(iter(values.values())))


def _by_row(outputs: dict[str, np.ndarray], signature: inference.SignatureDef) -> bytes:
    count = None
    for alias, array in outputs.items():
        name = signature.outputs[alias].name.removesuffix(":0")
        if not array.ndim:
            raise InvalidArgumentError(f"Tensor name: {name} has no shape information ")
        count = len(array) if count is None else count
        if len(array) != count:
            what = f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {count}"
            raise InvalidArgumentError(what)
    if len(outputs) == 1:
        return json_writer.document("predictions", json_writer.values(array, alias), inline=True, rows=True)
    columns = {alias: json_writer.values(array, alias) for alias, array in outputs.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json_writer.objects("predictions", rows)


def _classify(model: Model, signature_name: str, document: dict[str, Any], timeout_ms: int) -> bytes:
    arguments = inference.CLASSIFY, signature_name, _input(document), timeout_ms
    result: Any = inference.one_task(model, *arguments)
    rows = [example.classes for example in result.classifications]
    results = [
        [[json_writer.quoted(one.label), json_writer.values(np.float32(one.score))] for one in row]
        for row in rows
    ]
    return json_writer.document("results", results, inline=True, rows=True)


def _regress(model: Model, signature_name: str, document: dict[str, Any], timeout_ms: int) -> bytes:
    arguments = inference.REGRESS, signature_name, _input(document), timeout_ms
    result: Any = inference.one_task(model, *arguments)
    values = json_writer.values(np.array([one.value for one in result.regressions], np.float32))
    return json_writer.document("results", values, inline=True)


VERBS = {"predict": _predict, "classify": _classify, "regress": _regress}


def _array(document: dict[str, Any], key: str, kind: str, empty: str) -> Any:
    if not isinstance(document[key], list | np.ndarray):
        raise _refusal(document, f"Expecting '{key}'{kind} to be an list/array")
    if not len(document[key]):
        raise _refusal(document, empty)
    return document[key]


def _input(document: dict[str, Any]) -> input_pb2.Input:
    if "examples" not in document:
        raise _refusal(document, "When method is classify, key 'examples' is expected and was not found")
    given = input_pb2.Input()
    if "context" in document:
        _fill(given.example_list_with_context.context, document["context"])
    for example in _array(document, "examples", " value", "'examples' value is an empty array"):
        _fill(given.example_list_with_context.examples.add(), example)
    return given


def _fill(example: example_pb2.Example, value: Any) -> None:
    """Put a JSON object's members into an Example; the type of its values says which kind a feature is."""
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"Example must be JSON object but got JSON {json_type(value)}")
    for name, content in value.items():
        content = content.tolist() if isinstance(content, np.ndarray) else content
        values = content if isinstance(content, list) else [content]
        kinds = [_kind(name, one) for one in values]
        feature = example.features.feature[name]
        if kinds:
            if set(kinds) != {kinds[0]}:
                what = f"Unexpected element type in feature: {name} expecting type: {kinds[0]}"
                raise InvalidArgumentError(what)
            if kinds[0] == "bytes":
                values = [rest_tensors.to_bytes(one) for one in values]
            elif kinds[0] == "int64":
                values = [int(one) for one in values]  # true and false are 1 and 0
            getattr(feature, f"{kinds[0]}_list").value.extend(values)


def _kind(name: str, value: Any) -> str:
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            what = f"Feature: {name} has uint64_t element. Only int64_t is supported."
            raise InvalidArgumentError(what)
        return "int64"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str) or is_base64(value):
        return "bytes"
    raise InvalidArgumentError(f"Feature: {name} has element with unexpected JSON type: {json_type(value)}")
