"""JSON values as arrays, and the words of TF Serving for what is none."""

from __future__ import annotations

import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from keras_bn_serving.local_server import rest_tensors
from keras_bn_serving.wire.dtypes import BY_NAME, name_of
from keras_bn_serving.wire.errors import InvalidArgumentError, ServingError, UnimplementedError


@pytest.mark.parametrize("dtype", [np.float16, np.uint16, np.complex64])
def test_dtypes_without_a_json_form(dtype: type) -> None:
    with pytest.raises(UnimplementedError, match="Conversion of JSON Value: 1"):
        rest_tensors.to_array([1], BY_NAME[name_of(np.dtype(dtype))].number)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("aGVsbG8=", b"hello"),
        ("aGVsbG8", b"hello"),
        ("aGVs\nbG8=", b"hello"),
        ("", b""),
        ("//79", b"\xff\xfe\xfd"),
    ],
)
def test_base64(text: str, value: bytes) -> None:
    assert rest_tensors.to_bytes({"b64": text}) == value


@pytest.mark.parametrize("text", ["!!", "__79", "a", "aGVsbG8=="])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(ServingError, match="Unable to base64 decode"):
        rest_tensors.to_bytes({"b64": text})


@pytest.mark.parametrize("value", [[[1], 2], [1, [2]], [[1, 2], [3]], [[[1]], [2]], [[1], [[2]]]])
def test_ragged_values_are_refused(value: list) -> None:
    with pytest.raises(InvalidArgumentError):
        rest_tensors.to_array(value, types_pb2.DT_FLOAT)


def test_big_arrays_of_different_shapes_are_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        rest_tensors.to_array([np.zeros(2000), np.zeros(2001)], types_pb2.DT_FLOAT)
    assert rest_tensors.to_array([np.zeros(2), np.ones(2)], types_pb2.DT_FLOAT).shape == (2, 2)


# What TF Serving says of nestings, by the rules that the golden vectors show: the first element of each list
# gives the shape, and values are looked at in their order.
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([[1, 2], [3]], "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ([[1], []], "Encountered list at unexpected size: 0 at level: 1 expected size: 1"),
        ([[], [1]], "Encountered list at unexpected size: 1 at level: 1 expected size: 0"),
        ([1, [2]], "Encountered list at unexpected level: 1 expected < 1"),
        (
            [[[1], [2]], [[3], 4]],
            "JSON Value: 4 found at incorrect level: 3 in the JSON DOM. Expected at level: 3",
        ),
        ([[1], 2], "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ([["x"], 2], 'JSON Value: "x" Type: String is not of expected type: float'),
    ],
)
def test_ragged_columns(value: list, why: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        rest_tensors.to_array(value, types_pb2.DT_FLOAT)
    assert str(raised.value) == why


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([3, 4, 5], "Expecting tensor size: 2 but got: 3"),
        ([[3, 4]], "Expecting shape [2] but got: [1,2]"),
        ([[3], [4]], "Expecting shape [2] but got: [2,1]"),
        (3, "Expecting tensor size: 2 but got: 1"),
        ([], "Expecting tensor size: 2 but got: 0"),
        ([3, [4]], "Encountered list at unexpected level: 1 expected < 1"),
        ([3, None], "JSON Value: null Type: Null is not of expected type: float"),
    ],
)
@pytest.mark.parametrize("lifted", [False, True], ids=["lists", "arrays"])
def test_ragged_rows(row: object, why: str, lifted: bool) -> None:
    """Row 2 of three; whether the reader made the others arrays makes no difference."""
    good = np.float64([1, 2]) if lifted else [1, 2]
    info = meta_graph_pb2.TensorInfo(name="x:0", dtype=types_pb2.DT_FLOAT)
    with pytest.raises(InvalidArgumentError) as raised:
        rest_tensors.rows([good, row, good], {"x": info})
    assert (
        str(raised.value)
        == f"Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: {why}"
    )


@pytest.mark.parametrize("flat", [[1, 2**31, 3], np.int64([1, 2**31, 3])], ids=["list", "array"])
def test_the_number_that_does_not_fit_is_named(flat: object) -> None:
    with pytest.raises(InvalidArgumentError, match="JSON Value: 2147483648 Type: Number is not of expected"):
        rest_tensors.to_array(flat, types_pb2.DT_INT32)
