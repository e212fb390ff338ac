"""Putting the parts together: from flags to a running server, and its orderly end."""

from __future__ import annotations

import logging
import signal
import threading
from importlib.metadata import version

import tensorflow as tf
from tensorflow_serving.config import model_server_config_pb2

from serving.local_server import batching
from serving.local_server import config as configuration
from serving.local_server import flags as command_line
from serving.local_server.catalog import Catalog
from serving.local_server.config_messages import BatchingParameters, MonitoringConfig
from serving.local_server.flags import Flags
from serving.local_server.grpc_server import GrpcServer
from serving.local_server.grpc_services import ModelService, PredictionService
from serving.local_server.http_server import HttpServer
from serving.local_server.manager import Manager
from serving.local_server.observe import Observer
from serving.local_server.rest import RestApi
from serving.local_server.servable import Loader, Servable
from serving.local_server.status import StatusError, invalid_argument

_FAILED = 255
_log = logging.getLogger(__name__)


def run(arguments: list[str]) -> int:
    """Serve as the command line says until SIGTERM or SIGINT; the exit code."""
    logging.basicConfig(format="%(asctime)s: %(levelname).1s %(name)s] %(message)s", level=logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    usage = command_line.usage("keras-bn-model-server")
    try:
        flags, leftover = command_line.parse(arguments)
    except command_line.BadValue as error:
        _log.error("%s", error)
        print(usage, flush=True)
        return _FAILED
    if flags.version:
        print(
            f"TensorFlow ModelServer: keras-bn {version('keras-bn')}\nTensorFlow Library: {tf.__version__}",
            flush=True,
        )
        return 0
    if leftover:
        if leftover[0] != "--help":
            print(f"unknown argument: {leftover[0]}")
        print(usage, flush=True)
        if leftover[0] == "--help":
            return _FAILED
    for name in flags.unsupported():
        _log.warning("--%s is not supported here and has no effect.", name)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = ModelServer(flags)
    try:
        server.start(stop)
    except StatusError as error:
        print(f"Failed to start server. Error: {error}", flush=True)
        server.stop(0)
        return _FAILED
    stop.wait()
    _log.info("Stopping: the requests in flight have %d seconds.", flags.drain_timeout_seconds)
    server.stop(flags.drain_timeout_seconds)
    return 0


class ModelServer:
    """The models and the two APIs in front of them."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._http: HttpServer | None = None
        self._grpc: GrpcServer | None = None
        self._manager: Manager[Servable] | None = None
        self._catalog: Catalog | None = None

    def start(self, stop: threading.Event) -> None:
        """Load the models, then open the ports. Returns early, with nothing open, if `stop` is set meanwhile.

        Raises:
            StatusError: why the server cannot start.
        """
        flags = self._flags
        config = _check(flags)
        self._manager = Manager(
            Loader(flags, _session_config(flags), _batching(flags)),
            flags.max_num_load_retries,
            flags.load_retry_interval_micros / 1e6,
            flags.allow_version_labels_for_unavailable_models,
        )
        self._catalog = Catalog(
            self._manager, flags.file_system_poll_wait_seconds, flags.fail_if_no_model_versions_found, stop
        )
        self._catalog.start(config)
        if stop.is_set():
            return
        observe = Observer(flags.log_requests)
        prediction = PredictionService(self._manager, observe, flags.enable_serialization_as_tensor_content)
        self._grpc = GrpcServer(flags, prediction, ModelService(self._manager, observe, self._catalog))
        if flags.rest_api_port:
            self._start_rest(observe)
        if flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
            self._catalog.follow_file(flags.model_config_file, flags.model_config_file_poll_wait_seconds)
        _log.info("Entering the event loop ...")

    def stop(self, drain_seconds: float) -> None:
        """Finish the requests in flight, within `drain_seconds`, and unload everything."""
        if self._catalog:
            self._catalog.close()
        # Both at once: a drain must not take twice its time.
        ends = [
            threading.Thread(target=api.stop, args=(drain_seconds,))
            for api in (self._grpc, self._http)
            if api
        ]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
        if self._manager:
            self._manager.close(drain_seconds)

    def _start_rest(self, observe: Observer) -> None:
        flags = self._flags
        assert self._manager
        if flags.rest_api_port == flags.port:
            _log.error("--rest_api_port must be another port than --port; the REST API is not served.")
            return
        try:
            metrics_path = _metrics_path(flags.monitoring_config_file)
        except StatusError as error:  # the real server goes on without REST too, and says nothing
            _log.error("--monitoring_config_file: %s; the REST API is not served.", error)
            return
        api = RestApi(
            self._manager,
            observe,
            flags.rest_api_timeout_in_ms,
            flags.rest_api_enable_cors_support,
            flags.rest_api_max_body_bytes,
            metrics_path,
            flags.enable_admin_endpoints,
        )
        server = HttpServer(api, flags.rest_api_num_threads, flags.rest_api_max_body_bytes)
        try:
            server.start(flags.host, flags.rest_api_port)
        except OSError as error:
            _log.error("Failed to start HTTP Server at localhost:%d: %s", flags.rest_api_port, error)
            return
        self._http = server
        _log.info("Exporting HTTP/REST API at:localhost:%d ...", flags.rest_api_port)


def _metrics_path(file: str) -> str:
    """Where the metrics are served, empty if they are not."""
    if not file:
        return ""
    prometheus = configuration.read(file, MonitoringConfig()).prometheus_config
    return (prometheus.path or "/monitoring/prometheus/metrics") if prometheus.enable else ""


def _check(flags: Flags) -> model_server_config_pb2.ModelServerConfig:
    """The models' configuration, once the flags are found to make sense together."""
    if not flags.port and not flags.grpc_socket_path:
        raise invalid_argument(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
        )
    if not flags.model_base_path and not flags.model_config_file:
        raise invalid_argument(
            "Both server_options.model_base_path and server_options.model_config_file are empty!"
        )
    if flags.use_alts_credentials and flags.ssl_config_file:
        raise invalid_argument("Either use_alts_credentials must be false or ssl_config_file must be empty.")
    if flags.batching_parameters_file and not flags.enable_batching:
        raise invalid_argument(
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true."
        )
    if flags.platform_config_file:
        from tensorflow_serving.config import platform_config_pb2

        configuration.read(flags.platform_config_file, platform_config_pb2.PlatformConfigMap())
    if flags.model_config_file:
        return configuration.read(flags.model_config_file, model_server_config_pb2.ModelServerConfig())
    return configuration.single_model(flags.model_name, flags.model_base_path)


def _batching(flags: Flags) -> batching.Parameters | None:
    if not flags.enable_batching:
        return None
    if not flags.batching_parameters_file:
        return batching.Parameters()
    return batching.Parameters.of(configuration.read(flags.batching_parameters_file, BatchingParameters()))


def _session_config(flags: Flags) -> tf.compat.v1.ConfigProto:
    config = tf.compat.v1.ConfigProto()
    if flags.tensorflow_session_config_file:
        configuration.read(flags.tensorflow_session_config_file, config)
    both, within, between = (
        flags.tensorflow_session_parallelism,
        flags.tensorflow_intra_op_parallelism,
        flags.tensorflow_inter_op_parallelism,
    )
    if both > 0 and within > 0 and between > 0:
        raise invalid_argument(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )
    config.intra_op_parallelism_threads = both or within or config.intra_op_parallelism_threads
    config.inter_op_parallelism_threads = both or between or config.inter_op_parallelism_threads
    return config
