"""Our messages against TF Serving's own descriptors, and both living in one process."""

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from keras_bn_serving.wire import messages
from keras_bn_serving.wire.messages import MESSAGES

# The messages that are sent and received; the rest is reached through their fields.
ROOTS = [
    (predict_pb2.PredictRequest, "PredictRequest"),
    (predict_pb2.PredictResponse, "PredictResponse"),
    (classification_pb2.ClassificationRequest, "ExamplesRequest"),
    (regression_pb2.RegressionRequest, "ExamplesRequest"),
    (classification_pb2.ClassificationResponse, "ClassificationResponse"),
    (regression_pb2.RegressionResponse, "RegressionResponse"),
    (get_model_metadata_pb2.GetModelMetadataRequest, "GetModelMetadataRequest"),
    (get_model_metadata_pb2.GetModelMetadataResponse, "GetModelMetadataResponse"),
    (get_model_metadata_pb2.SignatureDefMap, "SignatureDefMap"),
    (get_model_status_pb2.GetModelStatusRequest, "GetModelStatusRequest"),
    (get_model_status_pb2.GetModelStatusResponse, "GetModelStatusResponse"),
    (model_management_pb2.ReloadConfigRequest, "ReloadConfigRequest"),
    (model_management_pb2.ReloadConfigResponse, "ReloadConfigResponse"),
]
PACKED_AS_BYTES = {FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_BOOL}


def same_on_the_wire(ours: FieldDescriptor, theirs: FieldDescriptor) -> bool:
    if ours.type == FieldDescriptor.TYPE_BYTES and theirs.is_packed:
        # One value of fixed size after another in a length-delimited field; a bool is a varint of one byte.
        return not ours.is_repeated and theirs.type in PACKED_AS_BYTES
    if ours.is_repeated != theirs.is_repeated:
        return False
    if theirs.type == FieldDescriptor.TYPE_ENUM:
        return ours.type == FieldDescriptor.TYPE_INT32
    if theirs.type == FieldDescriptor.TYPE_STRING:
        return ours.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    return ours.type == theirs.type


@pytest.mark.parametrize(("theirs", "name"), ROOTS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_is_tf_servings(theirs, name):
    pending, seen = [(MESSAGES[name].DESCRIPTOR, theirs.DESCRIPTOR)], set()
    while pending:
        ours, official = pending.pop()
        if ours.full_name in seen:
            continue
        seen.add(ours.full_name)
        for field in ours.fields:
            twin = official.fields_by_number[field.number]
            assert twin.name == field.name, field.full_name
            assert same_on_the_wire(field, twin), field.full_name
            if field.message_type:
                pending.append((field.message_type, twin.message_type))
    assert len(seen) > 1


def test_no_line_of_the_schema_was_passed_over():
    fields = [field for message in MESSAGES.values() for field in message.DESCRIPTOR.fields]
    assert len(fields) == messages._SCHEMA.count(";")


def test_the_default_pool_knows_nothing_of_ours():
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName(MESSAGES["ModelSpec"].DESCRIPTOR.file.name)


@pytest.mark.parametrize(
    "imports",
    [
        ["keras_bn_serving.client.grpc_codec", "tensorflow_serving.apis.predict_pb2"],
        ["tensorflow_serving.apis.predict_pb2", "keras_bn_serving.client.grpc_codec"],
    ],
    ids=["ours first", "theirs first"],
)
def test_lives_beside_tensorflow_serving_api_in_either_order(imports):
    code = (
        f"import {imports[0]}, {imports[1]}\nkeras_bn_serving.client.grpc_codec.MESSAGES['PredictRequest']()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


MODULES = ["client", "client.http_transport", "client.async_http_transport", "client.grpc_transport"]


@pytest.mark.parametrize("module", MODULES)
def test_no_import_of_tensorflow_or_keras(module):
    heavy = "{'tensorflow', 'keras', 'jax', 'torch', 'tensorflow_serving', 'keras_bn'}"
    roots = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys, keras_bn_serving.{module}; print(sorted({heavy} & {roots}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "[]", result.stderr


def test_the_client_alone_imports_no_transport():
    names = "('grpc', 'h11', 'ssl', 'asyncio', 'google.protobuf')"
    code = f"import sys, keras_bn_serving.client; print([name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "[]", result.stderr
