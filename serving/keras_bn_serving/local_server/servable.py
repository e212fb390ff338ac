"""Making a version's folder a model that can be asked: loaded, run directly or in batches, and warmed up."""

import contextlib
import os
import time
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from keras_bn_serving.local_server import engines, inference, metrics
from keras_bn_serving.local_server.batch_queue import Parameters
from keras_bn_serving.local_server.batching import Batcher
from keras_bn_serving.local_server.flags import Flags
from keras_bn_serving.local_server.inference import Model
from keras_bn_serving.local_server.status import from_exception
from keras_bn_serving.wire.errors import InvalidArgumentError, UnimplementedError

_ONE_TASK = {"classify_log": inference.CLASSIFY, "regress_log": inference.REGRESS}


def load(
    name: str,
    path: str,
    flags: Flags,
    options: engines.Options = engines.Options(),  # noqa: B008 - it is frozen
    parameters: Parameters | None = None,
) -> Model:
    """The version in the folder `path`, run in batches if there are `parameters`, and warmed up."""
    started, status = time.perf_counter(), "success"
    try:
        engine = engines.load(path, options)
    except Exception as error:
        status = from_exception(error).code
        raise
    finally:
        metrics.LOADS.add(path, status)
        metrics.LOAD_LATENCY.add(path, by=int((time.perf_counter() - started) * 1e6))
    with contextlib.ExitStack() as parts:
        parts.callback(engine.close)
        model = Model(name, engine.signatures, engine.run, flags.enable_signature_method_name_check)
        if parameters:
            batcher = Batcher(engine.run, parameters)
            parts.callback(batcher.close)
            model.run = batcher.run
        if flags.enable_model_warmup:
            warm_up(model, path, flags.num_request_iterations_for_warmup)
        model.close = parts.pop_all().close
    return model


def warm_up(model: Model, path: str, iterations: int = 1) -> None:
    """Replay the requests stored in a version's folder on its model, each `iterations` times.

    Their model and version do not count; their signature does. One that fails, as a file that is no TFRecord
    file of at most 1000 PredictionLogs, is an error."""
    file = os.path.join(path, "assets.extra", "tf_serving_warmup_requests")
    if not os.path.isfile(file):
        return
    started, status = time.perf_counter(), "OK"
    try:
        for number, record in enumerate(tf.compat.v1.io.tf_record_iterator(file)):
            if number >= 1000:
                raise InvalidArgumentError(f"Number of warmup records exceeds the maximum (1000) at {file}")
            for _ in range(max(iterations, 1)):
                _replay(model, prediction_log_pb2.PredictionLog.FromString(record))
            metrics.WARMUP_RECORDS.add(path, "OK")
    except Exception as error:
        status = from_exception(error).code
        raise
    finally:
        metrics.WARMUP_LATENCY.observe((time.perf_counter() - started) * 1e6, path, status)


def _replay(model: Model, log: prediction_log_pb2.PredictionLog) -> None:
    kind = log.WhichOneof("log_type") or ""
    request: Any = getattr(log, kind).request if kind else None
    if kind == "predict_log":
        inference.predict_request(model, request)
    elif kind == "multi_inference_log":
        inference.multi_inference(model, request)
    elif kind in _ONE_TASK:
        inference.one_task(model, _ONE_TASK[kind], request.model_spec.signature_name, request.input)
    elif kind:
        raise UnimplementedError(f"Unsupported log_type for warmup: {kind}")
