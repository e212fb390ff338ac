"""Warm-up: the requests stored beside a model, replayed on it before it serves its first."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.local_server import classify_regress, inference, metrics
from serving.local_server.status import StatusError, from_exception, invalid_argument

MAX_RECORDS = 1000
_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
_log = logging.getLogger(__name__)


def run(model: inference.Model, path: str, iterations: int = 1) -> None:
    """Replay the warm-up requests in a version's folder on its model, one after the other.

    The requests name a model and a version of their own, which does not count; their signature does.

    Args:
        model: the loaded model.
        path: the version's folder; without a file of requests in it nothing happens.
        iterations: times each request is run.

    Raises:
        StatusError: a request failed, the file is no TFRecord file of PredictionLogs, or it holds more than
            1000.
    """
    file = os.path.join(path, _FILE)
    if not os.path.isfile(file):
        _log.info("No warmup data file found at %s", file)
        return
    started = time.perf_counter()
    status = "OK"
    try:
        for number, log in enumerate(_logs(file), 1):
            if number > MAX_RECORDS:
                raise invalid_argument(
                    f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}"
                )
            for _ in range(max(iterations, 1)):
                _replay(model, log)
            metrics.WARMUP_RECORDS.add(path, "OK")
    except Exception as error:
        status = from_exception(error).code
        raise
    finally:
        metrics.WARMUP_LATENCY.observe((time.perf_counter() - started) * 1e6, path, status)


def _logs(file: str) -> Iterator[prediction_log_pb2.PredictionLog]:
    records = tf.compat.v1.io.tf_record_iterator(file)
    for index in itertools.count():
        try:
            record = next(records)
        except StopIteration:
            return
        except tf.errors.DataLossError as error:
            raise StatusError(
                "DATA_LOSS", f"{error.message}. Please verify your warmup data is in TFRecord format."
            ) from error
        try:
            yield prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError as error:
            shown = record.decode("utf-8", "replace")
            raise invalid_argument(
                f"Failed to parse warmup record: {shown} from {file} (record {index})"
            ) from error


def _replay(model: inference.Model, log: prediction_log_pb2.PredictionLog) -> None:
    kind = log.WhichOneof("log_type")
    if kind is None:
        return
    if kind not in _REPLAYS:
        number = log.DESCRIPTOR.fields_by_name[kind].number
        raise StatusError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {number}")
    _REPLAYS[kind](model, getattr(log, kind).request)


def _examples(method: str) -> Callable[[inference.Model, Any], None]:
    def replay(model: inference.Model, request: Any) -> None:
        task = classify_regress.Task(
            method, classify_regress.signature_of(model, request.model_spec.signature_name)
        )
        classify_regress.run_task(model, task, classify_regress.examples_of(request.input))

    return replay


_REPLAYS: dict[str, Callable[[inference.Model, Any], Any]] = {
    "predict_log": inference.predict_request,
    "classify_log": _examples(inference.CLASSIFY),
    "regress_log": _examples(inference.REGRESS),
    "multi_inference_log": lambda model, request: classify_regress.run_tasks(
        model, classify_regress.multi_tasks(model, request.tasks), classify_regress.examples_of(request.input)
    ),
}
