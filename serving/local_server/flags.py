"""The command line: tensorflow_model_server's flags, its rules for reading them, and a few of our own.

Only `--name=value` sets a flag (and a bare `--name` a bool); the last of a repeated flag wins; what is not a
flag is reported and does not stop the server. `--name value` is not understood, there as here.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

CPUS = os.cpu_count() or 1
_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def _flag(default: Any, text: str, kind: str = "") -> Any:
    kind = kind or {bool: "bool", int: "int32", str: "string", float: "float"}[type(default)]
    return dataclasses.field(default=default, metadata={"kind": kind, "text": text})


_NO_EFFECT = "accepted, without effect on a local CPU server"
_UNSUPPORTED = "not supported here: accepted with a warning"


@dataclasses.dataclass
class Flags:
    """The value of every flag. Defaults are tensorflow_model_server's, but for `host`, which is ours."""

    port: int = _flag(8500, "TCP port of the gRPC API; 0: none")
    grpc_socket_path: str = _flag("", "Unix socket on which the gRPC API listens too")
    rest_api_port: int = _flag(0, "TCP port of the HTTP/REST API; 0: none")
    rest_api_num_threads: int = _flag(4 * CPUS, "threads that answer REST requests")
    rest_api_timeout_in_ms: int = _flag(30000, "time limit of a REST request's computation; 0: none")
    rest_api_enable_cors_support: bool = _flag(False, "send CORS headers with every REST reply")
    enable_batching: bool = _flag(False, "join concurrent requests into batches")
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "let a new label point to a version that is not loaded yet"
    )
    batching_parameters_file: str = _flag("", "text BatchingParameters; needs --enable_batching")
    enable_per_model_batching_parameters: bool = _flag(
        False, "read batching_params.pbtxt in each version's folder; needs --enable_batching"
    )
    model_config_file: str = _flag("", "text ModelServerConfig; overrides --model_name and --model_base_path")
    model_config_file_poll_wait_seconds: int = _flag(0, "read that file again every so often; 0: never")
    model_name: str = _flag("default", "name of the one model")
    model_base_path: str = _flag("", "folder of the one model's version folders (absolute)")
    num_load_threads: int = _flag(0, _NO_EFFECT)
    num_unload_threads: int = _flag(0, _NO_EFFECT)
    max_num_load_retries: int = _flag(5, "times a failed load is tried again")
    load_retry_interval_micros: int = _flag(60_000_000, "time between two tries of a load", "int64")
    file_system_poll_wait_seconds: int = _flag(
        1, "time between two looks for new versions; 0: look once; negative: never look"
    )
    flush_filesystem_caches: bool = _flag(True, _NO_EFFECT)
    tensorflow_session_parallelism: int = _flag(0, "threads within and between operations", "int64")
    tensorflow_intra_op_parallelism: int = _flag(0, "threads within an operation", "int64")
    tensorflow_inter_op_parallelism: int = _flag(0, "threads that run operations", "int64")
    tensorflow_session_config_file: str = _flag("", "text tensorflow.ConfigProto of the sessions")
    use_alts_credentials: bool = _flag(False, _UNSUPPORTED)
    ssl_config_file: str = _flag("", "text SSLConfig: serve gRPC over TLS only")
    platform_config_file: str = _flag("", _UNSUPPORTED)
    per_process_gpu_memory_fraction: float = _flag(0.0, _NO_EFFECT)
    saved_model_tags: str = _flag("serve", "tags of the graph to load, separated by commas")
    grpc_channel_arguments: str = _flag("", "gRPC channel arguments: name=value,name=value")
    grpc_max_threads: int = _flag(4 * CPUS, "threads that answer gRPC requests")
    enable_model_warmup: bool = _flag(True, "replay assets.extra/tf_serving_warmup_requests at load")
    num_request_iterations_for_warmup: int = _flag(0, "times each warm-up request is run, if more than 1")
    version: bool = _flag(False, "print the version and exit")
    monitoring_config_file: str = _flag("", "text MonitoringConfig: Prometheus metrics on the REST port")
    remove_unused_fields_from_bundle_metagraph: bool = _flag(True, _NO_EFFECT)
    prefer_tflite_model: bool = _flag(False, _UNSUPPORTED)
    num_tflite_pools: int = _flag(CPUS, _NO_EFFECT)
    num_tflite_interpreters_per_pool: int = _flag(1, _NO_EFFECT)
    enable_signature_method_name_check: bool = _flag(False, "refuse signatures made for another method")
    xla_cpu_compilation_enabled: bool = _flag(False, _UNSUPPORTED)
    xla_gpu_compilation_enabled: bool = _flag(False, _UNSUPPORTED)
    enable_profiler: bool = _flag(True, _NO_EFFECT)
    thread_pool_factory_config_file: str = _flag("", _UNSUPPORTED)
    mixed_precision: str = _flag("", _UNSUPPORTED)
    skip_initialize_tpu: bool = _flag(False, _NO_EFFECT)
    enable_grpc_healthcheck_service: bool = _flag(False, "serve grpc.health.v1.Health")
    enable_serialization_as_tensor_content: bool = _flag(
        False, "answer gRPC requests with packed tensor_content instead of typed fields"
    )
    # Extensions: what tensorflow_model_server does not have. None changes a reply unless it is set.
    host: str = _flag("localhost", "[extension] interface of both APIs; 0.0.0.0 or [::]: all")
    rest_api_max_body_bytes: int = _flag(2**31 - 1, "[extension] largest REST body, also when unzipped")
    drain_timeout_seconds: int = _flag(30, "[extension] time that requests in flight have after SIGTERM")
    log_requests: bool = _flag(False, "[extension] log one line of JSON for every request")
    enable_admin_endpoints: bool = _flag(
        False, "[extension] serve GET /healthz, /readyz and /models on the REST port"
    )
    fail_if_no_model_versions_found: bool = _flag(
        False, "[extension] refuse to start with a model that has no version, instead of waiting for one"
    )

    def unsupported(self) -> list[str]:
        """Names of the flags that were set to ask for something this server does not do."""
        return [
            f.name
            for f in dataclasses.fields(self)
            if f.metadata["text"] == _UNSUPPORTED and getattr(self, f.name) != f.default
        ]


_FIELDS = {field.name: field for field in dataclasses.fields(Flags)}


class BadValue(ValueError):
    """A flag whose value cannot be read; the message is tensorflow_model_server's."""


def parse(arguments: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags that `arguments` set, and the arguments that are not flags.

    Raises:
        BadValue: a value that is not of its flag's type.
    """
    flags = Flags()
    leftover: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            return flags, leftover + list(arguments[position:])
        name, equals, text = argument.removeprefix("--").partition("=")
        field = _FIELDS.get(name) if argument.startswith("--") else None
        if field is not None and (equals or field.metadata["kind"] == "bool"):
            setattr(flags, name, _value(name, field.metadata["kind"], text if equals else "true"))
        else:
            leftover.append(argument)
    return flags, leftover


def _value(name: str, kind: str, text: str) -> Any:
    try:
        if kind == "string":
            return text
        if kind == "bool":
            return _BOOLS[text.lower()]
        if kind == "float":
            return float(text)
        if not re.fullmatch(
            r"\s*[+-]?[0-9]+", text
        ):  # int() would take blanks at the end and underscores too
            raise ValueError(text)
        bits = int(kind.removeprefix("int"))
        return (int(text) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    except (ValueError, KeyError):
        raise BadValue(f"Couldn't interpret value {text} for flag {name}.") from None


def usage(program: str) -> str:
    """The help text: every flag with its default, type and meaning."""
    lines = [f"usage: {program}", "Flags:"]
    for field in _FIELDS.values():
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        value = f'"{default}"' if field.metadata["kind"] == "string" else default
        setting = f"--{field.name}={value}"
        lines.append(f"\t{setting:<33}\t{field.metadata['kind']}\t{field.metadata['text']}")
    return "\n".join(lines) + "\n"
