"""Warm-up requests, which TensorFlow Serving replays before it lets a version answer."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from keras_bn.saving.examples import Tensors

FILE = "tf_serving_warmup_requests"


def write(folder: Path, requests: Mapping[str, Tensors]) -> None:
    """Write one Predict request for every signature in `requests`, as TFRecords of PredictionLog."""
    with tf.io.TFRecordWriter(str(folder / FILE)) as writer:
        for signature, inputs in requests.items():
            request = predict_pb2.PredictRequest()
            for name, values in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
            request.model_spec.signature_name = signature
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
