"""Logs of requests, as TensorFlow Serving's own classes write them and as exports do."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from keras_bn.errors import KerasBNError
from keras_bn.saving import request_log, warm_up

INPUTS = [
    {"image": np.arange(12, dtype="float32").reshape(1, 2, 2, 3), "id": np.array([7])},
    {"image": np.zeros((3, 2, 2, 3), "float32"), "id": np.array([1, 2, 300])},
]


def write(path, requests):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            writer.write(request.SerializeToString())


def same(read, written):
    assert len(read) == len(written)
    for one, other in zip(read, written, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_log_of_tensorflow_serving(tmp_path):
    logs = []
    for inputs in INPUTS:
        log = prediction_log_pb2.PredictionLog()
        log.log_metadata.model_spec.name = "digits"
        log.predict_log.request.model_spec.name = "digits"
        log.predict_log.request.model_spec.version.value = 3
        for name, values in inputs.items():
            log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        log.predict_log.response.outputs["scores"].CopyFrom(tf.make_tensor_proto([0.5]))
        logs.append(log)
    other = prediction_log_pb2.PredictionLog()
    other.classify_log.request.input.example_list.examples.add()
    write(tmp_path / "log", [logs[0], other, logs[1]])
    same(list(request_log.read(tmp_path / "log")), INPUTS)


def test_the_warm_up_requests_of_an_export(tmp_path):
    warm_up.write(tmp_path, [("serving_default", inputs) for inputs in INPUTS])
    same(list(request_log.read(tmp_path / warm_up.FILE)), INPUTS)


@pytest.mark.parametrize("content", [b"junk" * 10, None])
def test_what_is_no_log_is_refused(tmp_path, content):
    path = tmp_path / "log"
    if content is None:
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(b"\x32\xff\x01cut off")
    else:
        path.write_bytes(content)
    with pytest.raises(KerasBNError, match="is not a log of requests"):
        list(request_log.read(path))
