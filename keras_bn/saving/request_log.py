"""Requests that TensorFlow Serving logged: TFRecords of `tensorflow.serving.PredictionLog`.

`assets.extra/tf_serving_warmup_requests` has the same form.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework import tensor_pb2

from keras_bn.errors import KerasBNError


def read(path: str | os.PathLike[str]) -> Iterator[dict[str, NDArray[np.generic]]]:
    """The inputs of every Predict request in a log, by name; requests of other kinds are skipped.

    The messages are read by the numbers of their fields in tensorflow_serving/apis, because the package that
    has their classes, tensorflow-serving-api, is not a dependency of this one.

    Raises:
        KerasBNError: If the file is not a request log, or is truncated.
    """
    try:
        for record in tf.data.TFRecordDataset(os.fspath(path)):
            message = record.numpy()
            for predict_log in _fields(message, 6):
                for request in _fields(predict_log, 1):
                    yield {
                        _only(entry, 1).decode(): tf.make_ndarray(
                            tensor_pb2.TensorProto.FromString(_only(entry, 2))
                        )
                        for entry in _fields(request, 2)
                    }
    except (tf.errors.OpError, ValueError, IndexError, TypeError) as error:
        reason = str(getattr(error, "message", error)).partition("\n")[0]
        reason = re.sub(r"\{\{.*?\}\} |\[Op:.*", "", reason).strip()  # the operation that failed
        raise KerasBNError(f"{path} is not a log of requests, or is damaged: {reason}") from error


def _only(message: bytes, number: int) -> bytes:
    return next(_fields(message, number), b"")


def _fields(message: bytes, number: int) -> Iterator[bytes]:
    """The contents of the length-delimited fields of a protocol buffer that have this number."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 2:
            length, position = _varint(message, position)
            if position + length > len(message):
                raise ValueError("a field is longer than its message")
            if tag >> 3 == number:
                yield message[position : position + length]
            position += length
        elif kind == 0:
            _, position = _varint(message, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has wire type {kind}")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
