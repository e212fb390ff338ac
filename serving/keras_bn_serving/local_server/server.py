"""Putting the parts together: from flags to a running server, and its orderly end."""

import contextlib
import json
import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

from keras_bn_serving import __version__
from keras_bn_serving.local_server import engines, logs, memory
from keras_bn_serving.local_server import flags as command_line
from keras_bn_serving.local_server.batch_queue import Parameters
from keras_bn_serving.local_server.catalog import BatchingParameters, Catalog, ModelServerConfig, read
from keras_bn_serving.local_server.flags import Flags
from keras_bn_serving.local_server.grpc_server import GrpcServer, Services
from keras_bn_serving.local_server.http_server import HttpServer
from keras_bn_serving.local_server.manager import Manager
from keras_bn_serving.local_server.rest import RestApi
from keras_bn_serving.local_server.servable import load
from keras_bn_serving.wire.errors import FailedPreconditionError, InvalidArgumentError, ServingError

_FAILED = 255
_log = logging.getLogger(__name__)


def run(arguments: list[str]) -> int:
    """Serve as the command line says until SIGTERM or SIGINT; the exit code.

    The first signal lets the requests in flight finish, a second one ends the process at once.
    """
    logs.start()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        return _run(arguments)
    finally:
        logs.flush()


def _run(arguments: list[str]) -> int:
    usage = command_line.usage("keras-bn-model-server")
    try:
        flags, unsupported, leftover = command_line.parse(arguments)
    except ValueError as error:
        _log.error("%s", error)
        _say(usage)
        return _FAILED
    if flags.version:
        ours = f"keras-bn-serving {__version__}"
        _say(f"TensorFlow ModelServer: {ours}\nTensorFlow Library: {tf.__version__}")
        return 0
    if leftover[:1] == ["--help"]:
        _say(usage)
        return _FAILED
    if leftover:
        _say(f"unknown argument: {leftover[0]}\n{usage}")
    for name in unsupported:
        _log.warning("--%s is not supported here and has no effect.", name)
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    parts = contextlib.ExitStack()  # what to stop, the last first
    try:
        _start(flags, stop, parts)
    except ServingError as error:
        _say(f"Failed to start server. Error: {error.status}")
        flags.drain_timeout_seconds = 0
        stop.set()
        parts.close()
        return _FAILED
    stop.wait()
    _log.info("Stopping: the requests in flight have %d seconds.", flags.drain_timeout_seconds)
    parts.close()
    return 0


def _start(flags: Flags, stop: threading.Event, parts: contextlib.ExitStack) -> None:
    """Load the models, then open the ports; with nothing open if `stop` is set meanwhile."""
    models = _check(flags)
    options = engines.Options(
        flags.engine, flags.engine_precision, tuple(flags.saved_model_tags.split(",")), _session_config(flags)
    )
    engines.check(options)
    parameters = None
    if flags.enable_batching:
        file = flags.batching_parameters_file
        parameters = Parameters.of(read(file, BatchingParameters())) if file else Parameters()
    manager = Manager(lambda name, path: load(name, path, flags, options, parameters), flags)
    parts.callback(lambda: manager.close(flags.drain_timeout_seconds))
    catalog = Catalog(manager, flags, stop)
    memory.keep_what_is_here()
    catalog.start(models)
    if stop.is_set():
        return
    apis: list[GrpcServer | HttpServer] = []
    parts.callback(lambda: _drain(apis, flags.drain_timeout_seconds))
    grpc = GrpcServer(flags, Services(manager, catalog, flags))
    apis.append(grpc)
    ports = {"port": grpc.port, "rest_api_port": 0}
    if flags.rest_api_port or flags.ports_file:
        try:
            if flags.rest_api_port and flags.rest_api_port == grpc.port:
                raise OSError("the gRPC API is there already")
            api = RestApi(manager, flags)
            http = HttpServer(api, flags.rest_api_num_threads, flags.rest_api_max_body_bytes)
            ports["rest_api_port"] = http.start(flags.host, flags.rest_api_port)
            apis.append(http)
            _log.info("Exporting HTTP/REST API at:localhost:%d ...", ports["rest_api_port"])
        except (OSError, ServingError) as error:  # the real server goes on without REST too
            _log.error("Failed to start HTTP Server at localhost:%d: %s", flags.rest_api_port, error)
    if flags.ports_file:
        _write_ports(flags.ports_file, ports)
    if flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
        catalog.follow_file(flags.model_config_file, flags.model_config_file_poll_wait_seconds)
    _log.info("Entering the event loop ...")


def _write_ports(path: str, ports: dict[str, int]) -> None:
    """Write the file in one step, so that a process that waits for it can use the ports at once."""
    aside = f"{path}.{os.getpid()}"
    try:
        with open(aside, "w", encoding="utf-8") as file:
            json.dump(ports, file)
        os.replace(aside, path)
    except OSError as error:
        raise FailedPreconditionError(f"--ports_file={path} cannot be written: {error}") from error


def _say(text: str) -> None:
    """Print to stdout, where there is one."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


def _drain(apis: list[GrpcServer | HttpServer], seconds: float) -> None:
    """Let both APIs finish their requests at once: a drain must not take twice its time."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda api: api.stop(seconds), apis))


def _check(flags: Flags) -> ModelServerConfig:
    """The models' configuration, once the flags are found to make sense together."""
    rules = "server_options"
    if not (flags.port or flags.grpc_socket_path or flags.ports_file):
        raise InvalidArgumentError(
            f"At least one of {rules}.grpc_port or {rules}.grpc_socket_path must be set."
        )
    if not (flags.model_base_path or flags.model_config_file):
        raise InvalidArgumentError(f"Both {rules}.model_base_path and {rules}.model_config_file are empty!")
    if flags.batching_parameters_file and not flags.enable_batching:
        what = f"{rules}.batching_parameters_file is set without setting {rules}.enable_batching to true."
        raise InvalidArgumentError(what)
    if flags.model_config_file:
        return read(flags.model_config_file, ModelServerConfig())
    model = {"name": flags.model_name, "base_path": flags.model_base_path, "model_platform": "tensorflow"}
    return ModelServerConfig(model_config_list={"config": [model]})


def _session_config(flags: Flags) -> tf.compat.v1.ConfigProto:
    session = tf.compat.v1.ConfigProto()
    if flags.tensorflow_session_config_file:
        read(flags.tensorflow_session_config_file, session)
    for name in ("intra_op_parallelism", "inter_op_parallelism"):
        threads = flags.tensorflow_session_parallelism or getattr(flags, f"tensorflow_{name}")
        if threads > 0:
            setattr(session, f"{name}_threads", threads)
    return session
