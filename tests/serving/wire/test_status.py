"""The codes against gRPC's and TensorFlow's, and their HTTP statuses against TF Serving's table."""

import grpc
import pytest
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import get_model_status_pb2

from keras_bn_serving.wire.errors import BY_CODE
from keras_bn_serving.wire.status import CODES, HTTP_CODES, HTTP_STATUS, STATES


def test_the_codes_are_grpcs_and_tensorflows():
    assert {code.name: code.value[0] for code in grpc.StatusCode} == {
        code: number for number, code in enumerate(CODES)
    }
    assert [error_codes_pb2.Code.Name(number) for number in range(len(CODES))] == list(CODES)


def test_each_code_but_ok_is_an_error():
    assert set(BY_CODE) == set(CODES) - {"OK"}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, "OK"), (400, "INVALID_ARGUMENT"), (401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"), (409, "ABORTED"), (429, "RESOURCE_EXHAUSTED"), (499, "CANCELLED"),
        (500, "INTERNAL"), (501, "UNIMPLEMENTED"), (503, "UNAVAILABLE"), (504, "DEADLINE_EXCEEDED"),
    ],
)  # fmt: skip
def test_a_status_is_read_back_as_the_likeliest_code(status, code):
    assert HTTP_CODES[status] == code
    assert HTTP_STATUS[code] == status


def test_the_states_are_tf_servings():
    assert {number: name for name, number in get_model_status_pb2.ModelVersionStatus.State.items()} == STATES
