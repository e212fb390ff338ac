"""The gRPC server: services, transport security, health and reflection on a port and a socket."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from serving.local_server import config
from serving.local_server.config_messages import SSLConfig
from serving.local_server.flags import Flags
from serving.local_server.grpc_services import ModelService, PredictionService
from serving.local_server.status import StatusError, invalid_argument

_log = logging.getLogger(__name__)


class GrpcServer:
    """Serves the two services as the flags say.

    Raises:
        StatusError: the flags are wrong, or a port is taken.
    """

    def __init__(self, flags: Flags, prediction: PredictionService, models: ModelService) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            *_channel_arguments(flags.grpc_channel_arguments),
        ]
        threads = ThreadPoolExecutor(max(flags.grpc_max_threads, 1), thread_name_prefix="grpc")
        self._server = grpc.server(threads, options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, self._server)
        names = [
            prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
            model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
            reflection.SERVICE_NAME,
        ]
        self._health: health.HealthServicer | None = None
        if flags.enable_grpc_healthcheck_service:
            self._health = health.HealthServicer()
            for service in ("", "ModelService", "PredictionService"):
                self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
            names.append(health.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._listen(flags)
        self._server.start()

    def stop(self, timeout: float) -> None:
        """Take no more calls, finish those that are here, within `timeout` seconds."""
        if self._health:
            self._health.enter_graceful_shutdown()
        self._server.stop(timeout).wait()

    def _listen(self, flags: Flags) -> None:
        credentials = _credentials(flags.ssl_config_file) if flags.ssl_config_file else None
        addresses = [f"{flags.host}:{flags.port}"] if flags.port else []
        addresses += [f"unix:{flags.grpc_socket_path}"] if flags.grpc_socket_path else []
        try:
            for address in addresses:
                if credentials:
                    self._server.add_secure_port(address, credentials)
                else:
                    self._server.add_insecure_port(address)
        except RuntimeError as error:
            _log.error("%s", error)
            raise StatusError("UNKNOWN", "Failed to BuildAndStart gRPC server") from error
        if flags.port:
            _log.info("Running gRPC ModelServer at %s:%d ...", flags.host, flags.port)
        if flags.grpc_socket_path:
            _log.info("Running gRPC ModelServer at UNIX socket %s ...", flags.grpc_socket_path)


def _credentials(path: str) -> grpc.ServerCredentials:
    """Credentials of a text SSLConfig, which holds the PEM texts themselves."""
    ssl = config.read(path, SSLConfig())
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=ssl.client_verify,
    )


def _channel_arguments(text: str) -> Iterable[tuple[str, int | str]]:
    for pair in filter(None, text.split(",")):
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise invalid_argument(f"--grpc_channel_arguments must be name=value,name=value; got {pair}")
        try:
            yield name, int(value)
        except ValueError:
            yield name, value
