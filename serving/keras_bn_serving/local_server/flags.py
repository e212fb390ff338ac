"""The command line: tensorflow_model_server's flags, and a few of our own.

Only `--name=value` sets a flag (and a bare `--name` a bool); the last of a repeated flag wins. Other
arguments are reported and do not stop the server. `--name value` is not understood, as in
tensorflow_model_server.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

_CPUS = os.cpu_count() or 1
_BOOLS = {"true": True, "1": True, "false": False, "0": False}
# Flags that are accepted and have no effect here. Those of the second list cause a warning.
_NO_EFFECT = """
    num_load_threads num_unload_threads flush_filesystem_caches per_process_gpu_memory_fraction
    remove_unused_fields_from_bundle_metagraph num_tflite_pools num_tflite_interpreters_per_pool
    enable_profiler skip_initialize_tpu
"""
_UNSUPPORTED = """
    use_alts_credentials platform_config_file prefer_tflite_model xla_cpu_compilation_enabled
    xla_gpu_compilation_enabled mixed_precision thread_pool_factory_config_file
    enable_per_model_batching_parameters
"""


def _flag(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"text": text})


@dataclasses.dataclass
class Flags:
    """The value of every flag. Defaults are tensorflow_model_server's, but for `host`, which is ours."""

    port: int = _flag(8500, "TCP port of the gRPC API. With 0, there is none.")
    grpc_socket_path: str = _flag("", "Unix socket on which the gRPC API listens as well.")
    rest_api_port: int = _flag(0, "TCP port of the REST API. With 0, there is none.")
    rest_api_num_threads: int = _flag(4 * _CPUS, "Number of threads that answer REST requests.")
    rest_api_timeout_in_ms: int = _flag(30000, "Time limit of a REST request's computation. 0 means none.")
    rest_api_enable_cors_support: bool = _flag(False, "Send CORS headers with every REST reply.")
    enable_batching: bool = _flag(False, "Merge concurrent requests into batches.")
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "Allow labels of versions that are not loaded."
    )
    batching_parameters_file: str = _flag(
        "", "File with BatchingParameters as text. It needs --enable_batching."
    )
    model_config_file: str = _flag("", "File with a ModelServerConfig as text, instead of --model_base_path.")
    model_config_file_poll_wait_seconds: int = _flag(
        0, "Interval at which the file is read again. With 0, never."
    )
    model_name: str = _flag("default", "Name of the model.")
    model_base_path: str = _flag("", "Absolute path of the folder that holds the model's versions.")
    max_num_load_retries: int = _flag(5, "Number of times that a failed load is repeated.")
    load_retry_interval_micros: int = _flag(60_000_000, "Pause before a failed load is repeated.")
    file_system_poll_wait_seconds: int = _flag(1, "Interval of the search for versions. 0: once; -1: never.")
    tensorflow_session_parallelism: int = _flag(0, "Number of threads within and between operations.")
    tensorflow_intra_op_parallelism: int = _flag(0, "Number of threads within an operation.")
    tensorflow_inter_op_parallelism: int = _flag(0, "Number of threads that run operations.")
    tensorflow_session_config_file: str = _flag(
        "", "File with a tensorflow.ConfigProto of the sessions as text."
    )
    ssl_config_file: str = _flag("", "File with an SSLConfig as text. gRPC is then served over TLS only.")
    saved_model_tags: str = _flag("serve", "Tags of the graph to load, separated by commas.")
    grpc_channel_arguments: str = _flag("", "gRPC channel arguments, as name=value,name=value.")
    grpc_max_threads: int = _flag(4 * _CPUS, "Number of threads that answer gRPC requests.")
    enable_model_warmup: bool = _flag(True, "Replay assets.extra/tf_serving_warmup_requests at load.")
    num_request_iterations_for_warmup: int = _flag(0, "Number of runs of each warm-up request, if above 1.")
    version: bool = _flag(False, "Print the version and exit.")
    monitoring_config_file: str = _flag("", "File with a MonitoringConfig as text, for Prometheus metrics.")
    enable_signature_method_name_check: bool = _flag(False, "Refuse signatures of another method.")
    enable_grpc_healthcheck_service: bool = _flag(False, "Serve grpc.health.v1.Health.")
    enable_serialization_as_tensor_content: bool = _flag(False, "Send numbers over gRPC as tensor_content.")
    # Extensions, which tensorflow_model_server does not have. None changes a reply unless it is set.
    host: str = _flag("localhost", "[extension] Interface of both APIs. 0.0.0.0 or [::] means all.")
    rest_api_max_body_bytes: int = _flag(
        2**31 - 1, "[extension] Largest size of a REST body, also after unzipping."
    )
    drain_timeout_seconds: int = _flag(30, "[extension] Time limit of requests in flight after SIGTERM.")
    log_requests: bool = _flag(False, "[extension] Log one line of JSON for every request.")
    enable_admin_endpoints: bool = _flag(False, "[extension] Also serve /healthz, /readyz and /models.")
    engine: str = _flag("tensorflow", "[extension] Engine that runs the models: tensorflow or openvino.")
    engine_precision: str = _flag("float32", "[extension] Precision of matrix products: float32 or bfloat16.")
    ports_file: str = _flag("", "[extension] File for both ports as JSON. A port of 0 is chosen freely.")
    fail_if_no_model_versions_found: bool = _flag(
        False, "[extension] Exit if a model has no version at the start."
    )


_DEFAULTS: dict[str, Any] = dataclasses.asdict(Flags())


def parse(arguments: Sequence[str]) -> tuple[Flags, list[str], list[str]]:
    """The flags that `arguments` set, the unsupported ones among them, and the rest; or a ValueError."""
    flags, unsupported, leftover = Flags(), [], []
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        default = _DEFAULTS.get(name)
        if not argument.startswith("--"):
            leftover.append(argument)
        elif name in _UNSUPPORTED.split():
            unsupported.append(name)
        elif default is not None and (equals or isinstance(default, bool)):
            try:
                bare = text.lower() if equals else "true"
                value = _BOOLS[bare] if isinstance(default, bool) else type(default)(text)
            except (ValueError, KeyError):
                raise ValueError(f"Couldn't interpret value {text} for flag {name}.") from None
            setattr(flags, name, value)
        elif name not in _NO_EFFECT.split():
            leftover.append(argument)
    return flags, unsupported, leftover


def usage(program: str) -> str:
    """The help text: every flag with its default and meaning."""
    lines = [f"usage: {program}", "Flags:"]
    for field in dataclasses.fields(Flags):
        lines.append(f"  --{field.name}={field.default}\n      {field.metadata['text']}")
    return "\n".join([*lines, f"Without effect:{_NO_EFFECT}", f"Not supported:{_UNSUPPORTED}"])


def described() -> list[tuple[str, Any, str]]:
    """Name, default and help text of every flag."""
    return [(field.name, field.default, field.metadata["text"]) for field in dataclasses.fields(Flags)]
