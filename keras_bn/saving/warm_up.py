"""Warm-up requests, which TensorFlow Serving replays before it lets a version answer."""

from collections.abc import Iterable
from pathlib import Path

import tensorflow as tf

from keras_bn.saving.examples import Tensors

FILE = "tf_serving_warmup_requests"


def write(folder: Path, requests: Iterable[tuple[str, Tensors]]) -> None:
    """Write a Predict request for every pair of a signature's name and its inputs, as TFRecords."""
    with tf.io.TFRecordWriter(str(folder / FILE)) as writer:
        for signature, inputs in requests:
            writer.write(_prediction_log(signature, inputs))


def _prediction_log(signature: str, inputs: Tensors) -> bytes:
    """A serialized `tensorflow.serving.PredictionLog`.

    It is encoded by hand, because the package with the message's class, tensorflow-serving-api, is not a
    dependency of this one. The numbers are those of the fields in tensorflow_serving/apis.
    """
    request = _field(1, _field(3, signature.encode()))  # PredictRequest.model_spec, ModelSpec.signature_name
    for name, values in inputs.items():
        tensor = tf.make_tensor_proto(values).SerializeToString()
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))  # an entry of the map `inputs`
    return _field(6, _field(1, request))  # PredictionLog.predict_log, PredictLog.request


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
