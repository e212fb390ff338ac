"""The gRPC side: PredictionService and ModelService over TF Serving's own protobufs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.local_server import classify_regress, inference, tensors
from serving.local_server.catalog import Catalog
from serving.local_server.manager import Manager
from serving.local_server.observe import Observer
from serving.local_server.servable import Servable
from serving.local_server.status import CODES, from_exception, invalid_argument

_MAX_DETAILS = 1024
_log = logging.getLogger(__name__)


def answering(method: Callable[[Any, Any, grpc.ServicerContext], Message]) -> Callable:
    """A service method that may raise (which becomes the call's code and details) and that is observed."""

    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Message:
        started, code = time.perf_counter(), "OK"
        try:
            return method(self, request, context)
        except Exception as failure:
            error = from_exception(failure)
            code = error.code
            if error is not failure:
                _log.exception("%s failed", method.__name__)
            details = error.message
            if len(details.encode()) > _MAX_DETAILS:
                details = details.encode()[:_MAX_DETAILS].decode("utf-8", "ignore") + "...TRUNCATED"
            context.abort(getattr(grpc.StatusCode, error.code), details)
            raise AssertionError("abort always raises") from None
        finally:
            name = request.model_spec.name if hasattr(request, "model_spec") else ""
            self.observe("GRPC", method.__name__, name, code, started)

    return call


def _timeout_ms(context: grpc.ServicerContext) -> int:
    seconds = context.time_remaining()
    return 0 if seconds is None else max(int(seconds * 1000), 1)


def _name(request: Any) -> str:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    if not request.model_spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    return request.model_spec.name


def version_and_label(spec: model_pb2.ModelSpec) -> tuple[int | None, str | None]:
    """The version, or the label, that a request asks for."""
    return (
        spec.version.value if spec.HasField("version") else None,
        spec.version_label if spec.HasField("version_label") else None,
    )


def fill_spec(spec: model_pb2.ModelSpec, name: str, number: int, signature: str | None = None) -> None:
    """Write into a response which model, version and signature it comes from."""
    spec.name = name
    spec.version.value = number
    if signature is not None:
        spec.signature_name = signature or inference.DEFAULT_SIGNATURE


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """tensorflow.serving.PredictionService."""

    def __init__(self, manager: Manager[Servable], observe: Observer, packed: bool) -> None:
        self._manager = manager
        self.observe = observe
        self._packed = packed

    @answering
    def Predict(self, request: Any, context: grpc.ServicerContext) -> Message:  # noqa: D102
        name, signature_name = _name(request), request.model_spec.signature_name
        with self._manager.use(name, *version_and_label(request.model_spec)) as (number, model):
            outputs = inference.predict_request(model, request, _timeout_ms(context))
        response = predict_pb2.PredictResponse()
        for alias, (array, dtype) in outputs.items():
            tensors.to_proto(array, dtype, response.outputs[alias], self._packed)
        fill_spec(response.model_spec, name, number, signature_name)
        return response

    @answering
    def Classify(self, request: Any, context: grpc.ServicerContext) -> Message:  # noqa: D102
        response = classification_pb2.ClassificationResponse()
        self._run(inference.CLASSIFY, request, context, response)
        return response

    @answering
    def Regress(self, request: Any, context: grpc.ServicerContext) -> Message:  # noqa: D102
        response = regression_pb2.RegressionResponse()
        self._run(inference.REGRESS, request, context, response)
        return response

    def _run(self, method: str, request: Any, context: grpc.ServicerContext, response: Any) -> None:
        name, spec = _name(request), request.model_spec
        with self._manager.use(name, *version_and_label(spec)) as (number, model):
            task = classify_regress.Task(method, classify_regress.signature_of(model, spec.signature_name))
            task.check(model.check_methods)
            examples = classify_regress.examples_of(request.input)
            result = classify_regress.run_task(model, task, examples, _timeout_ms(context))
        _fill_result(result, response.result)
        fill_spec(response.model_spec, name, number, spec.signature_name)

    @answering
    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Message:  # noqa: D102
        if not request.tasks or not request.tasks[0].model_spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        first = request.tasks[0].model_spec
        response = inference_pb2.MultiInferenceResponse()
        with self._manager.use(first.name, *version_and_label(first)) as (number, model):
            tasks = classify_regress.multi_tasks(model, request.tasks)
            examples = classify_regress.examples_of(request.input)
            results = classify_regress.run_tasks(model, tasks, examples, _timeout_ms(context))
        for asked, result in zip(request.tasks, results, strict=True):
            one = response.results.add()
            fill_spec(one.model_spec, first.name, number, asked.model_spec.signature_name)
            is_classes = isinstance(result, classify_regress.Classes)
            _fill_result(result, one.classification_result if is_classes else one.regression_result)
        return response

    @answering
    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Message:  # noqa: D102
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid_argument(f"Metadata field {field} is not supported")
        name = _name(request)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._manager.use(name, *version_and_label(request.model_spec)) as (number, model):
            response.metadata["signature_def"].Pack(signature_map(model))
        fill_spec(response.model_spec, name, number)
        return response


def signature_map(model: inference.Model) -> get_model_metadata_pb2.SignatureDefMap:
    """All signatures of a model."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for key, signature in model.signatures.items():
        signatures.signature_def[key].CopyFrom(signature)
    return signatures


def _fill_result(result: Any, proto: Any) -> None:
    if isinstance(result, classify_regress.Classes):
        for row in result.rows():
            classes = proto.classifications.add().classes
            for label, score in row:
                # The field is a proto3 string: other bytes than UTF-8 cannot be put there.
                classes.add(label=label.decode("utf-8", "replace"), score=score)
    else:
        for value in result.tolist():
            proto.regressions.add(value=value)


def status_response(
    manager: Manager[Servable], name: str, number: int | None
) -> get_model_status_pb2.GetModelStatusResponse:
    """The states of a model's versions, or of one of them, the highest first."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for version in manager.status(name, number):
        one = response.model_version_status.add(version=version.number, state=version.state)
        one.status.SetInParent()
        if version.error is not None:
            one.status.error_code = CODES.index(version.error.code)
            one.status.error_message = version.error.message
    return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """tensorflow.serving.ModelService."""

    def __init__(self, manager: Manager[Servable], observe: Observer, catalog: Catalog) -> None:
        self._manager = manager
        self.observe = observe
        self._catalog = catalog

    @answering
    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Message:  # noqa: D102
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        number, _ = version_and_label(request.model_spec)
        return status_response(self._manager, request.model_spec.name, number)

    @answering
    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Message:  # noqa: D102
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        self._catalog.reload(request.config)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        for name in request.metric_names:
            response.metric.add(name=name)
        return response
