"""The gRPC side: PredictionService and ModelService, health and reflection, on a port and a Unix socket."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
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

from keras_bn_serving.local_server import inference, metrics, predict_requests, responses
from keras_bn_serving.local_server.addresses import addresses
from keras_bn_serving.local_server.catalog import ONLY_LISTS, Catalog, SSLConfig, read
from keras_bn_serving.local_server.flags import Flags
from keras_bn_serving.local_server.manager import Manager
from keras_bn_serving.local_server.predict_requests import PredictRequest
from keras_bn_serving.local_server.status import from_exception
from keras_bn_serving.wire import tensors
from keras_bn_serving.wire.errors import InvalidArgumentError, ServingError

ModelSpec: TypeAlias = model_pb2.ModelSpec
MetadataRequest: TypeAlias = get_model_metadata_pb2.GetModelMetadataRequest
ReloadRequest: TypeAlias = model_management_pb2.ReloadConfigRequest
_MAX_DETAILS = 1024
_ENDLESS_S = 1e9  # what grpcio says, besides None, of a call without a deadline is far beyond
_log = logging.getLogger(__name__)


def _answering(method: Callable[[Any, Any, int], Message]) -> Callable[..., Message]:
    """A service method, given its time limit in milliseconds (0: none), which may raise and is recorded."""

    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Message:
        started, code = time.perf_counter(), "OK"
        message = request.message if isinstance(request, PredictRequest) else request
        has_spec = hasattr(message, "model_spec")
        try:
            if has_spec and not message.HasField("model_spec"):
                raise InvalidArgumentError("Missing ModelSpec")
            return method(self, request, _left_ms(context))
        except Exception as failure:
            error = from_exception(failure)
            code = error.code
            details = str(error).encode("utf-8", "replace")
            if len(details) > _MAX_DETAILS:
                details = details[:_MAX_DETAILS] + b"...TRUNCATED"
            context.abort(grpc.StatusCode[code], details.decode("utf-8", "ignore"))
            raise AssertionError("abort always raises") from None
        finally:
            name = message.model_spec.name if has_spec else ""
            metrics.record("GRPC", method.__name__, name, code, started, self.flags.log_requests)

    return call


def _left_ms(context: grpc.ServicerContext) -> int:
    seconds = context.time_remaining()
    return 0 if seconds is None or seconds > _ENDLESS_S else max(int(seconds * 1000), 1)


class Services(
    prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer
):
    """tensorflow.serving.PredictionService and tensorflow.serving.ModelService."""

    def __init__(self, manager: Manager, catalog: Catalog, flags: Flags) -> None:
        self._manager = manager
        self._catalog = catalog
        self.flags = flags

    def _use(self, spec: ModelSpec) -> AbstractContextManager[tuple[int, inference.Model]]:
        if not spec.name:
            raise InvalidArgumentError("ModelSpec has no name specified.")
        number = spec.version.value if spec.HasField("version") else None
        label = spec.version_label if spec.HasField("version_label") else None
        return self._manager.use(spec.name, number, label)

    @_answering
    def Predict(self, request: PredictRequest, timeout_ms: int) -> Message:  # noqa: D102
        message, contents = request
        with self._use(message.model_spec) as (number, model):
            outputs = inference.predict_request(model, message, timeout_ms, contents)
        key = message.model_spec.signature_name or inference.DEFAULT_SIGNATURE
        response = predict_pb2.PredictResponse(model_spec=responses.spec_of(model.name, number, key))
        packed = self.flags.enable_serialization_as_tensor_content
        for alias, array in outputs.items():
            tensors.write(array, response.outputs[alias], packed)
        return response

    @_answering
    def Classify(self, request: classification_pb2.ClassificationRequest, timeout_ms: int) -> Message:  # noqa: D102
        spec, result = self._run(inference.CLASSIFY, request, timeout_ms)
        return classification_pb2.ClassificationResponse(model_spec=spec, result=result)

    @_answering
    def Regress(self, request: regression_pb2.RegressionRequest, timeout_ms: int) -> Message:  # noqa: D102
        spec, result = self._run(inference.REGRESS, request, timeout_ms)
        return regression_pb2.RegressionResponse(model_spec=spec, result=result)

    def _run(
        self,
        method: str,
        request: classification_pb2.ClassificationRequest | regression_pb2.RegressionRequest,
        timeout_ms: int,
    ) -> tuple[ModelSpec, inference.Result]:
        key = request.model_spec.signature_name or inference.DEFAULT_SIGNATURE
        with self._use(request.model_spec) as (number, model):
            result = inference.one_task(model, method, key, request.input, timeout_ms)
        return responses.spec_of(model.name, number, key), result

    @_answering
    def MultiInference(self, request: inference_pb2.MultiInferenceRequest, timeout_ms: int) -> Message:  # noqa: D102
        if not request.tasks:
            raise InvalidArgumentError("ModelSpec has no name specified.")
        response = inference_pb2.MultiInferenceResponse()
        with self._use(request.tasks[0].model_spec) as (number, model):
            results = inference.multi_inference(model, request, timeout_ms)
        for task, result in zip(request.tasks, results, strict=True):
            field = "classification" if task.method_name == inference.CLASSIFY else "regression"
            key = task.model_spec.signature_name or inference.DEFAULT_SIGNATURE
            response.results.add(
                model_spec=responses.spec_of(model.name, number, key), **{f"{field}_result": result}
            )
        return response

    @_answering
    def GetModelMetadata(self, request: MetadataRequest, timeout_ms: int) -> Message:  # noqa: D102
        fields = request.metadata_field
        if not fields:
            raise InvalidArgumentError("GetModelMetadataRequest must specify at least one metadata_field")
        for field in fields:
            if field != "signature_def":
                raise InvalidArgumentError(f"Metadata field {field} is not supported")
        with self._use(request.model_spec) as (number, model):
            signatures = responses.signature_map(model)
        response = get_model_metadata_pb2.GetModelMetadataResponse(
            model_spec=responses.spec_of(model.name, number)
        )
        response.metadata["signature_def"].Pack(signatures)
        return response

    @_answering
    def GetModelStatus(self, request: get_model_status_pb2.GetModelStatusRequest, timeout_ms: int) -> Message:  # noqa: D102
        spec = request.model_spec
        number = spec.version.value if spec.HasField("version") else None
        return responses.status_response(self._manager, spec.name, number)

    @_answering
    def HandleReloadConfigRequest(self, request: ReloadRequest, timeout_ms: int) -> Message:  # noqa: D102
        if not request.config.WhichOneof("config"):
            raise InvalidArgumentError(ONLY_LISTS)
        self._catalog.reload(request.config, seconds=timeout_ms / 1e3 if timeout_ms else math.inf)
        metric = [{"name": name} for name in request.metric_names]
        return model_management_pb2.ReloadConfigResponse(status={}, metric=metric)


class GrpcServer:
    """Serves the two services as the flags say.

    Attributes:
        port: the TCP port; 0 if there is none.
    """

    def __init__(self, flags: Flags, services: Services) -> None:
        options: list[Any] = [(f"grpc.max_{way}_message_length", -1) for way in ("receive", "send")]
        options += [("grpc.so_reuseport", 0), *_channel_arguments(flags.grpc_channel_arguments)]
        threads = ThreadPoolExecutor(max(flags.grpc_max_threads, 1), thread_name_prefix="grpc")
        self._server = grpc.server(threads, options=options)
        self._server.add_generic_rpc_handlers((_predict_handler(services),))  # of two, the first counts
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(services, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(services, self._server)
        names = [f"tensorflow.serving.{name}" for name in ("PredictionService", "ModelService")]
        self._health = health.HealthServicer()
        if flags.enable_grpc_healthcheck_service:
            for service in ("", "ModelService", "PredictionService"):
                self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
            names.append(health.SERVICE_NAME)
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self._server)
        credentials = _credentials(flags.ssl_config_file) if flags.ssl_config_file else None
        self.port = flags.port
        if flags.port or flags.ports_file:
            # Each address by itself: of a name, gRPC is content with one on which the port is free.
            for address in _addresses(flags.host):
                self.port = self._listen(f"{address}:{self.port}", credentials)
            _log.info("Running gRPC ModelServer at %s:%d ...", flags.host, self.port)
        if flags.grpc_socket_path:
            self._listen(f"unix:{flags.grpc_socket_path}", credentials)
            _log.info("Running gRPC ModelServer at UNIX socket %s ...", flags.grpc_socket_path)
        self._server.start()

    def stop(self, timeout: float) -> None:
        """Take no more calls, finish those that are here, within `timeout` seconds."""
        self._health.enter_graceful_shutdown()
        self._server.stop(timeout).wait()

    def _listen(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials:
                return int(self._server.add_secure_port(address, credentials))
            return int(self._server.add_insecure_port(address))
        except RuntimeError as error:
            raise ServingError(f"Failed to BuildAndStart gRPC server: {error}") from error


def _predict_handler(services: Services) -> grpc.GenericRpcHandler:
    """Predict, with requests that are read by `predict_requests`."""
    handler = grpc.unary_unary_rpc_method_handler(
        services.Predict, predict_requests.read, predict_pb2.PredictResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", {"Predict": handler})


def _addresses(host: str) -> list[str]:
    try:
        return [f"[{address}]" if ":" in address else address for address in addresses(host)]
    except OSError as error:
        raise ServingError(f"Failed to BuildAndStart gRPC server: {error}") from error


def _credentials(path: str) -> grpc.ServerCredentials:
    """Credentials of a text SSLConfig, which holds the PEM texts themselves."""
    ssl = read(path, SSLConfig())
    pair = (ssl.server_key.encode(), ssl.server_cert.encode())
    return grpc.ssl_server_credentials([pair], ssl.custom_ca.encode() or None, ssl.client_verify)


def _channel_arguments(text: str) -> Iterable[tuple[str, int | str]]:
    for pair in filter(None, text.split(",")):
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InvalidArgumentError(f"--grpc_channel_arguments must be name=value,name=value; got {pair}")
        yield name, int(value) if value.removeprefix("-").isdecimal() else value
