"""The client reads what a real tensorflow_model_server 2.20.0 answered (tests/serving/golden)."""

import base64
import gzip
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
)

from keras_bn_serving.client.exchange import Target
from keras_bn_serving.client.grpc_codec import GrpcCodec
from keras_bn_serving.client.http_messages import refusal
from keras_bn_serving.client.metadata import Signature
from keras_bn_serving.client.rest import RestCodec, loads
from keras_bn_serving.wire.errors import ServingError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "golden.jsonl.gz"
with gzip.open(GOLDEN, "rt", encoding="utf-8") as lines:
    RECORDS = [json.loads(line) for line in lines]
REST = [record for record in RECORDS if record["kind"] == "rest"]
MODEL = Target("m")
MESSAGES = {
    "Predict": predict_pb2.PredictResponse,
    "Classify": classification_pb2.ClassificationResponse,
    "Regress": regression_pb2.RegressionResponse,
    "GetModelStatus": get_model_status_pb2.GetModelStatusResponse,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataResponse,
}


def rest_body(record) -> bytes:
    response = record["response"]
    return (
        base64.b64decode(response["body_base64"]) if "body_base64" in response else response["body"].encode()
    )


def answered(record) -> bool:
    """Whether this is a JSON answer of a model's API that is not an error."""
    kind = record["response"].get("headers", {}).get("content-type", "")
    return (
        record["response"]["status"] == 200
        and kind.startswith("application/json")
        and rest_body(record) != b""
    )


def grpc_answers(method: str):
    """(record, message as TF Serving defines it) of each good answer of a method."""
    for record in RECORDS:
        request, response = record.get("request", {}), record.get("response", {})
        if record["kind"] != "grpc" or request.get("method") != method or response.get("code") != "OK":
            continue
        if "response_base64" in response:
            yield record, MESSAGES[method].FromString(base64.b64decode(response["response_base64"]))
        elif "response" in response:
            yield record, json_format.ParseDict(response["response"], MESSAGES[method]())


def test_every_json_body_is_read():
    bodies = [rest_body(record) for record in REST if answered(record)]
    assert len(bodies) > 100
    for body in bodies:
        loads(body)


def test_every_error_body_gives_the_servers_words():
    seen = 0
    for record in REST:
        if record["response"]["status"] in (200, 0) or not rest_body(record).startswith(b'{\n    "error"'):
            continue
        try:
            words = json.loads(rest_body(record), strict=False)["error"]
        except ValueError:
            continue  # TF Serving leaves some messages unescaped; the body is shown whole then
        with pytest.raises(ServingError) as caught:
            raise refusal(record["response"]["status"], {}, rest_body(record))
        assert str(caught.value) == (words or str(caught.value))
        seen += 1
    assert seen > 100


def test_statuses_are_the_same_over_both_transports():
    read = GrpcCodec().status(MODEL).read
    for record, message in grpc_answers("GetModelStatus"):
        as_json = json_format.MessageToJson(
            message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
        )
        over_rest = RestCodec().status(MODEL).read(as_json.encode())
        assert read(message.SerializeToString()) == over_rest, record["id"]
    rest = [record for record in REST if answered(record) and b"model_version_status" in rest_body(record)]
    assert rest
    for record in rest:
        assert all(entry.version > 0 for entry in RestCodec().status(MODEL).read(rest_body(record)))


def test_metadata_is_the_same_over_both_transports():
    over_rest = {}
    for record in REST:
        if answered(record) and b'"signature_def"' in rest_body(record):
            metadata = RestCodec().metadata(MODEL).read(rest_body(record))
            over_rest[metadata.name, metadata.version] = metadata
    assert over_rest
    compared = 0
    for _, message in grpc_answers("GetModelMetadata"):
        metadata = GrpcCodec().metadata(MODEL).read(message.SerializeToString())
        if (metadata.name, metadata.version) in over_rest:
            assert metadata == over_rest[metadata.name, metadata.version]
            compared += 1
    assert compared


def test_predictions_over_grpc_are_what_tensorflow_reads():
    compared = 0
    for record, message in grpc_answers("Predict"):
        read = GrpcCodec().predict(MODEL, None, Signature({}, {}), {}, ()).read
        arrays = read(message.SerializeToString())
        assert set(arrays) == set(message.outputs), record["id"]
        for name, array in arrays.items():
            proto = message.outputs[name]
            # The C++ reader: the one in Python does not know strings in tensor_content.
            wanted = tf.io.parse_tensor(proto.SerializeToString(), proto.dtype).numpy()
            assert array.shape == np.shape(wanted)
            assert array.tolist() == np.asarray(wanted).tolist() or np.array_equal(
                array, wanted, equal_nan=True
            ), record["id"]
            compared += 1
    assert compared > 20


def test_classifications_and_regressions_over_grpc():
    for method, field in (("Classify", "classifications"), ("Regress", "regressions")):
        answers = list(grpc_answers(method))
        assert answers
        for record, message in answers:
            result = (
                GrpcCodec()
                .examples(method.lower(), MODEL, None, [{}], None)
                .read(message.SerializeToString())
            )
            assert len(result) == len(getattr(message.result, field)), record["id"]
