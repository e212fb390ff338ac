"""The methods of REST on a model that is a function: documents in, documents out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from tensorflow.core.example import example_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from keras_bn_serving.local_server import inference, rest_methods
from keras_bn_serving.wire.errors import InvalidArgumentError


def model(**outputs: Any) -> inference.Model:
    """y = x and, if given, other outputs; regress: the number of bytes of each example."""
    both = meta_graph_pb2.SignatureDef()
    both.inputs["x"].name, both.inputs["x"].dtype = "x:0", 1
    for alias in outputs or {"y": None}:
        both.outputs[alias].name = f"{alias}:0"
    regress = meta_graph_pb2.SignatureDef()
    regress.inputs["inputs"].name = "inputs:0"
    regress.outputs["outputs"].name = "outputs:0"
    fed: list[Mapping[str, np.ndarray]] = []

    def run(feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int) -> list[np.ndarray]:
        fed.append(feeds)
        if "inputs:0" in feeds:
            return [np.float32([len(example) for example in feeds["inputs:0"]])]
        return [np.asarray(outputs.get(name[:-2], feeds["x:0"])) for name in fetches]

    made = inference.Model("m", {"serving_default": both, "regress": regress}, run)
    made.fed = fed  # type: ignore[attr-defined]
    return made


def predict(one: inference.Model, document: dict) -> Any:
    return json.loads(rest_methods.VERBS["predict"](one, "", document, 0))


def test_rows_and_columns() -> None:
    assert predict(model(), {"instances": [[1.0, 2.0]]}) == {"predictions": [[1.0, 2.0]]}
    assert predict(model(), {"inputs": 1.5}) == {"outputs": 1.5}
    two = model(a=np.int32([1, 2]), b=np.float32([[3], [4]]))
    assert predict(two, {"instances": [0, 0]}) == {
        "predictions": [{"a": 1, "b": [3.0]}, {"a": 2, "b": [4.0]}]
    }
    assert predict(two, {"inputs": [0]}) == {"outputs": {"a": [1, 2], "b": [[3.0], [4.0]]}}


def test_no_rows() -> None:
    """A half that is empty has no value without a JSON form, as in the original."""
    assert predict(model(y=np.zeros((0, 3), np.float16)), {"instances": [1]}) == {"predictions": []}
    assert predict(model(y=np.zeros((1, 0), np.complex64)), {"instances": [1]}) == {"predictions": [[]]}
    assert predict(model(y=np.zeros(0, np.float16), z=np.zeros(0, np.int8)), {"inputs": 1}) == {
        "outputs": {"y": [], "z": []}
    }


@pytest.mark.parametrize(
    ("outputs", "error"),
    [
        ({"y": np.float32(1)}, "Tensor name: y has no shape information "),
        (
            {"y": np.zeros(1, np.int8), "z": np.zeros(2, np.int8)},
            "Tensor name: z has inconsistent batch size: 2 expecting: 1",
        ),
        ({"y": np.zeros(1, np.float16)}, "Failed to write JSON value for tensor type: half"),
    ],
)
def test_outputs_that_are_no_rows(outputs: dict, error: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        predict(model(**outputs), {"instances": [1]})
    assert str(raised.value) == error


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": [1], "inputs": 1}, "Not formatted correctly expecting only one of"),
        ({"instances": 1}, "Expecting 'instances' to be an list/array"),
        ({"instances": []}, "No values in 'instances' array"),
    ],
)
def test_bodies_that_are_refused(document: dict, error: str) -> None:
    with pytest.raises(InvalidArgumentError, match=error):
        predict(model(), document)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1.5, "float_list", [1.5]),
        ([1, 2], "int64_list", [1, 2]),
        (True, "int64_list", [1]),
        (["a", {"b64": "/w=="}], "bytes_list", [b"a", b"\xff"]),
        (np.float64([1, 2]), "float_list", [1, 2]),
    ],
)
def test_the_values_of_a_feature_say_its_kind(value: Any, kind: str, expected: list) -> None:
    one = model()
    answer = rest_methods.VERBS["regress"](one, "regress", {"examples": [{"f": value}]}, 0)
    (fed,) = one.fed  # type: ignore[attr-defined]
    feature = example_pb2.Example.FromString(fed["inputs:0"][0]).features.feature["f"]
    assert feature.WhichOneof("kind") == kind
    assert list(getattr(feature, kind).value) == expected
    assert json.loads(answer) == {"results": [len(fed["inputs:0"][0])]}


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": {}}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [[1]]}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{"f": [1, 1.5]}]}, "Unexpected element type in feature: f expecting type: int64"),
        ({"examples": [{"f": None}]}, "Feature: f has element with unexpected JSON type: Null"),
        ({"examples": [{"f": 2**63}]}, "Feature: f has uint64_t element"),
    ],
)
def test_examples_that_are_refused(document: dict, error: str) -> None:
    with pytest.raises(InvalidArgumentError, match=error):
        rest_methods.VERBS["regress"](model(), "regress", document, 0)


@pytest.mark.parametrize("document", [1, [], "x", None, {"signature_name": 1}])
def test_documents_that_are_refused(document: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="JSON Value: "):
        rest_methods.check(document)
