"""The bodies of REST inference: JSON documents in, JSON documents out."""

from __future__ import annotations

from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2
from tensorflow.core.framework import types_pb2

from serving.local_server import classify_regress, inference, json_reader, json_writer, rest_tensors, tensors
from serving.local_server.json_reader import Numbers
from serving.local_server.json_writer import quote_value
from serving.local_server.status import invalid_argument

_WRITABLE = {
    types_pb2.DT_FLOAT,
    types_pb2.DT_DOUBLE,
    types_pb2.DT_INT32,
    types_pb2.DT_INT16,
    types_pb2.DT_INT8,
    types_pb2.DT_UINT8,
    types_pb2.DT_INT64,
    types_pb2.DT_UINT32,
    types_pb2.DT_UINT64,
    types_pb2.DT_BOOL,
    types_pb2.DT_STRING,
}


def read(body: bytes) -> tuple[dict[str, Any], str]:
    """The document of a request and the signature name in it, empty for the default.

    Raises:
        json_conformant.ParseError: it is no JSON.
        StatusError: it is no object, or the signature name no string.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    document = json_reader.parse(body)
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {quote_value(document)} Is not object")
    signature_name = document.get("signature_name", "")
    if not isinstance(signature_name, str):
        raise invalid_argument(
            f"JSON Value: {quote_value(document)} not formatted correctly. 'signature_name' key must be a "
            "string value."
        )
    return document, signature_name


def predict(model: inference.Model, signature_name: str, document: dict[str, Any], timeout_ms: int) -> str:
    """The body of the answer to :predict."""
    key = signature_name or inference.DEFAULT_SIGNATURE
    if key not in model.signatures:
        raise invalid_argument(f'Serving signature name: "{key}" not found in signature def')
    signature = model.signatures[key]
    if not signature.inputs:
        raise invalid_argument(f"Failed to get input map for signature: {signature_name or 'DEFAULT'}")
    by_row = "instances" in document
    if by_row and "inputs" in document:
        raise invalid_argument(
            f"JSON Value: {quote_value(document)} Not formatted correctly expecting only one of 'inputs' "
            "or 'instances' "
            "keys to exist "
        )
    if by_row:
        inputs = _rows(document, signature)
    elif "inputs" in document:
        inputs = rest_tensors.columns(document["inputs"], signature.inputs)
    else:
        raise invalid_argument("Missing 'inputs' or 'instances' key")
    outputs = inference.predict(model, signature, inputs, timeout_ms=timeout_ms)
    return _by_row(outputs, signature) if by_row else _by_column(outputs)


def _rows(document: dict[str, Any], signature: inference.SignatureDef) -> dict[str, np.ndarray]:
    instances = document["instances"]
    if isinstance(instances, Numbers):
        if len(signature.inputs) == 1:
            ((alias, info),) = signature.inputs.items()
            array = rest_tensors.from_numbers(instances.array, info.dtype)
            if array is not None:
                return {alias: array}
        instances = instances.to_list()
    if not isinstance(instances, list):
        raise invalid_argument(
            f"JSON Value: {quote_value(document)} Expecting 'instances' to be an list/array"
        )
    if not instances:
        raise invalid_argument(f"JSON Value: {quote_value(document)} No values in 'instances' array")
    return rest_tensors.rows(instances, signature.inputs)


def _texts(alias: str, output: inference.Output) -> list[str]:
    if output.dtype not in _WRITABLE:
        raise invalid_argument(
            f"Failed to write JSON value for tensor type: {tensors.dtype_name(output.dtype)}"
        )
    return json_writer.texts(output.array, as_base64=alias.endswith("_bytes"))


def _by_column(outputs: dict[str, inference.Output]) -> str:
    indent = 4 if len(outputs) == 1 else 8
    values = {
        alias: json_writer.expanded(_texts(alias, output), output.array.shape, indent)
        for alias, output in outputs.items()
    }
    if len(values) == 1:
        (value,) = values.values()
    else:
        members = ",\n".join(
            f"        {json_writer.quoted(alias)}: {value}" for alias, value in values.items()
        )
        value = f"{{\n{members}\n    }}"
    return f'{{\n    "outputs": {value}\n}}'


def _by_row(outputs: dict[str, inference.Output], signature: inference.SignatureDef) -> str:
    count = None
    for alias, (array, _) in outputs.items():
        name = signature.outputs[alias].name.removesuffix(":0")
        if array.ndim == 0:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        count = len(array) if count is None else count
        if len(array) != count:
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {count}"
            )
    if not count:
        return '{\n    "predictions": []\n}'
    columns = {alias: _row_texts(alias, output) for alias, output in outputs.items()}
    if len(columns) == 1:
        (column,) = columns.values()
        return '{\n    "predictions": [' + ", ".join(column) + "\n    ]\n}"
    keys = [json_writer.quoted(alias) for alias in columns]
    objects = (
        ",\n".join(f"            {key}: {text}" for key, text in zip(keys, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    )
    return (
        '{\n    "predictions": [\n'
        + ",\n".join(f"        {{\n{one}\n        }}" for one in objects)
        + "\n    ]\n}"
    )


def _row_texts(alias: str, output: inference.Output) -> list[str]:
    texts, (count, *shape) = _texts(alias, output), output.array.shape
    size = len(texts) // count
    return [json_writer.inline(texts[i * size : (i + 1) * size], shape) for i in range(count)]


# Classify and Regress


def examples_method(
    method: str, model: inference.Model, signature_name: str, document: dict[str, Any], timeout_ms: int
) -> str:
    """The body of the answer to :classify or :regress."""
    task = classify_regress.Task(method, classify_regress.signature_of(model, signature_name))
    examples = _examples(document)
    result = classify_regress.run_task(model, task, examples, timeout_ms)
    if isinstance(result, classify_regress.Classes):
        rows = [
            "[" + ", ".join(f"[{json_writer.quoted(label)}, {_score(score)}]" for label, score in row) + "]"
            for row in result.rows()
        ]
        return '{\n    "results": [' + ", ".join(rows) + "\n    ]\n}"
    return '{\n    "results": [' + ", ".join(json_writer.number_texts(result)) + "]\n}"


def _score(score: float) -> str:
    return json_writer.number_texts(np.array([score], np.float32))[0]


def _examples(document: dict[str, Any]) -> np.ndarray:
    """The serialized Examples of a request, each preceded by the context if there is one."""
    if "examples" not in document:
        raise invalid_argument(
            f"JSON Value: {quote_value(document)} When method is classify, key 'examples' is expected and "
            "was not found"
        )
    examples = document["examples"]
    if isinstance(examples, Numbers):
        examples = examples.to_list()
    if not isinstance(examples, list):
        raise invalid_argument(
            f"JSON Value: {quote_value(document)} Expecting 'examples' value to be an list/array"
        )
    if not examples:
        raise invalid_argument(f"JSON Value: {quote_value(document)} 'examples' value is an empty array")
    context = _example(document["context"]) if "context" in document else b""
    return np.array([context + _example(example) for example in examples], object)


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {rest_tensors.json_type(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        if isinstance(content, Numbers):
            content = content.to_list()
        _fill_feature(
            example.features.feature[name], name, content if isinstance(content, list) else [content]
        )
    return example.SerializeToString()


def _fill_feature(feature: Any, name: str, values: list[Any]) -> None:
    """Put values of one kind into a feature; the first value says which kind."""
    kinds = [_kind(name, value) for value in values]
    for kind in kinds:
        if kind != kinds[0]:
            raise invalid_argument(f"Unexpected element type in feature: {name} expecting type: {kinds[0]}")
    if kinds:
        if kinds[0] == "bytes":
            values = [rest_tensors.to_bytes(value) for value in values]
        getattr(feature, f"{kinds[0]}_list").value.extend(values)


def _kind(name: str, value: Any) -> str:
    if isinstance(value, int):
        if value >= 2**64 or value < -(2**63):
            return "float"  # no integer any more for the original's parser
        if value >= 2**63:
            raise invalid_argument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return "int64"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str) or (isinstance(value, dict) and rest_tensors.is_base64(value)):
        return "bytes"
    raise invalid_argument(
        f"Feature: {name} has element with unexpected JSON type: {rest_tensors.json_type(value)}"
    )
