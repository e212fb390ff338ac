"""Warm-up requests, which TensorFlow Serving replays before it lets a version answer."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

FILE = Path("assets.extra") / "tf_serving_warmup_requests"


def write(folder: Path, requests: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> None:
    """Write Predict requests, pairs of a signature's name and its inputs, as TFRecords of PredictionLog."""
    path = folder / FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            request = predict_pb2.PredictRequest()
            for name, values in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
            request.model_spec.signature_name = signature
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
