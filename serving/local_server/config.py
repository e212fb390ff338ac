"""Configuration files in protobuf text format, and the rules a model configuration must keep."""

from __future__ import annotations

import logging
import re
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from serving.local_server.status import StatusError, invalid_argument

Proto = TypeVar("Proto", bound=Message)
_TENSORFLOW = "tensorflow"
_log = logging.getLogger(__name__)


def read(path: str, proto: Proto) -> Proto:
    """`proto`, filled from the text file at `path`.

    Raises:
        StatusError: NOT_FOUND for a file that cannot be read, INVALID_ARGUMENT for one that is empty or not
            such a text.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise StatusError("NOT_FOUND", f"{path}; No such file or directory") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StatusError("FAILED_PRECONDITION", f"{path}; {getattr(error, 'strerror', error)}") from None
    if not text:
        raise invalid_argument(f"{path}; Invalid argument")
    try:
        return text_format.Parse(text, proto)
    except text_format.ParseError as error:
        _log.error("Error parsing text-format %s: %s", proto.DESCRIPTOR.full_name, error)
        raise invalid_argument(f"Invalid protobuf file: '{path}'") from None


def single_model(name: str, base_path: str) -> model_server_config_pb2.ModelServerConfig:
    """The configuration that --model_name and --model_base_path stand for."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=base_path, model_platform=_TENSORFLOW)
    return config


Models = dict[str, model_server_config_pb2.ModelConfig]


def models(config: model_server_config_pb2.ModelServerConfig, current: Models) -> Models:
    """The model configurations by name, once they are found in order and able to follow the `current` ones.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the model and what is wrong with it.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid_argument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    result: Models = {}
    for model in config.model_config_list.config:
        if model.name in result:
            raise invalid_argument(f"Illegal to list model {model.name} multiple times in config list")
        _check(model)
        before = _platform(current.get(model.name, model))
        if before != _platform(model):
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was {before} and "
                "new platform "
                f"requested is {_platform(model)}"
            )
        if _platform(model) != _TENSORFLOW:
            raise invalid_argument(f"Model {model.name} requests unsupported platform {_platform(model)}")
        result[model.name] = model
    return result


def _check(model: model_server_config_pb2.ModelConfig) -> None:
    if not re.match(r"/|[A-Za-z][\w+.-]*://", model.base_path):
        raise invalid_argument(
            f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
        )
    of_type, of_platform = (
        model.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED,
        model.model_platform,
    )
    if of_type and of_platform:
        raise invalid_argument(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    if not of_type and not of_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    if model.model_type not in (
        model_server_config_pb2.MODEL_TYPE_UNSPECIFIED,
        model_server_config_pb2.TENSORFLOW,
    ):
        raise invalid_argument("ModelServerConfig::model_type choice not supported.")


def _platform(model: model_server_config_pb2.ModelConfig) -> str:
    return model.model_platform or _TENSORFLOW
