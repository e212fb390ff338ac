"""The gRPC form of the calls: protobuf messages in and out."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import json_format, text_format
from google.protobuf.message import DecodeError

from keras_bn_serving.client.arguments import shown
from keras_bn_serving.client.exchange import Configuration, Exchange, Features, Target
from keras_bn_serving.client.features import feature_values
from keras_bn_serving.client.metadata import (
    ModelMetadata,
    Signature,
    TensorSpec,
    VersionStatus,
)
from keras_bn_serving.wire import tensors
from keras_bn_serving.wire.dtypes import dtype_name
from keras_bn_serving.wire.errors import InternalError, InvalidArgumentError, ServingError, with_code
from keras_bn_serving.wire.messages import MESSAGES
from keras_bn_serving.wire.status import CODES, STATES

_PREDICTION = "/tensorflow.serving.PredictionService"
_MODEL = "/tensorflow.serving.ModelService"


class GrpcCodec:
    """Codec for `grpc://`, `grpcs://` and `unix:`."""

    def predict(
        self,
        target: Target,
        name: str | None,
        signature: Signature,
        inputs: dict[str, np.ndarray],
        outputs: Sequence[str],
    ) -> Exchange:
        """See Codec."""
        head = MESSAGES["PredictRequest"](model_spec=_spec(target, name), output_filter=outputs)
        dtypes = {key: spec.dtype for key, spec in signature.inputs.items()}
        body = b"".join([head.SerializeToString(), *tensors.encode_inputs(inputs, dtypes)])

        def read(reply: bytes) -> dict[str, np.ndarray]:
            return {key: _array(tensor) for key, tensor in _parse("PredictResponse", reply).outputs.items()}

        return Exchange(f"{_PREDICTION}/Predict", body, read)

    def examples(
        self,
        method: str,
        target: Target,
        name: str | None,
        examples: Sequence[Features],
        context: Features | None,
    ) -> Exchange:
        """See Codec."""
        request = MESSAGES["ExamplesRequest"](model_spec=_spec(target, name))
        listed = request.input.example_list if context is None else request.input.example_list_with_context
        listed.examples.extend(_example(example) for example in examples)
        if context is not None:
            listed.context.CopyFrom(_example(context))

        def read_classes(reply: bytes) -> list[list[tuple[str, float]]]:
            result = _parse("ClassificationResponse", reply).result
            return [
                [(entry.label.decode("utf-8", "replace"), entry.score) for entry in example.classes]
                for example in result.classifications
            ]

        def read_values(reply: bytes) -> np.ndarray:
            result = _parse("RegressionResponse", reply).result
            return np.array([entry.value for entry in result.regressions], np.float32)

        read = read_classes if method == "classify" else read_values
        return Exchange(f"{_PREDICTION}/{method.title()}", request.SerializeToString(), read)

    def status(self, target: Target) -> Exchange:
        """See Codec."""
        request = MESSAGES["GetModelStatusRequest"](model_spec=_spec(target))

        def read(reply: bytes) -> list[VersionStatus]:
            return [
                VersionStatus(
                    entry.version,
                    STATES.get(entry.state, "UNKNOWN"),
                    CODES[entry.status.error_code],
                    entry.status.error_message,
                )
                for entry in _parse("GetModelStatusResponse", reply).model_version_status
            ]

        return Exchange(f"{_MODEL}/GetModelStatus", request.SerializeToString(), read)

    def metadata(self, target: Target) -> Exchange:
        """See Codec."""
        request = MESSAGES["GetModelMetadataRequest"](
            model_spec=_spec(target), metadata_field=["signature_def"]
        )

        def read(reply: bytes) -> ModelMetadata:
            response = _parse("GetModelMetadataResponse", reply)
            signatures = _parse("SignatureDefMap", response.metadata["signature_def"].value).signature_def
            spec = response.model_spec
            return ModelMetadata(
                spec.name, spec.version.value, {key: _signature(value) for key, value in signatures.items()}
            )

        return Exchange(f"{_PREDICTION}/GetModelMetadata", request.SerializeToString(), read)

    def reload(self, config: Configuration) -> Exchange:
        """See Codec; `config` as `Client.reload` takes it. Never repeated: others may have reloaded since."""
        request = MESSAGES["ReloadConfigRequest"](config=_model_server_config(config))

        def read(reply: bytes) -> None:
            status = _parse("ReloadConfigResponse", reply).status
            if status.error_code:
                raise with_code(CODES[status.error_code], status.error_message)

        return Exchange(
            f"{_MODEL}/HandleReloadConfigRequest", request.SerializeToString(), read, idempotent=False
        )


def _model_server_config(config: Configuration) -> Any:
    message = MESSAGES["ModelServerConfig"]()
    what = f"the configuration {shown(config)} is not a ModelServerConfig"
    try:
        if isinstance(config, str | os.PathLike):
            text_format.Parse(pathlib.Path(config).read_text(), message)
        elif isinstance(config, Mapping):
            json_format.ParseDict(config, message)
        elif hasattr(config, "SerializeToString"):
            message.MergeFromString(config.SerializeToString())
        else:
            raise InvalidArgumentError(f"{what}: pass the path of a models.config file, or a dict")
    except OSError as error:
        raise InvalidArgumentError(
            f"the configuration {shown(config)} cannot be read: {error.strerror}"
        ) from error
    except ServingError:
        raise
    except Exception as error:  # what protobuf may raise of a dict is more than its ParseError
        raise InvalidArgumentError(f"{what}: {error}") from error
    return message


def _spec(target: Target, signature: str | None = None) -> Any:
    spec = MESSAGES["ModelSpec"](name=target.model, signature_name=signature, version_label=target.label)
    if target.version is not None:
        spec.version.value = target.version
    return spec


def _example(features: Features) -> Any:
    example = MESSAGES["Example"]()
    for name, value in features.items():
        values = feature_values(name, value)
        feature = example.features.feature[name]
        kind = {"O": feature.bytes_list, "f": feature.float_list, "i": feature.int64_list}[values.dtype.kind]
        kind.value.extend(values.tolist())
    return example


def _parse(message: str, data: bytes) -> Any:
    try:
        return MESSAGES[message].FromString(data)
    except DecodeError as error:
        raise InternalError(f"the answer is not a {message}; is this TF Serving's gRPC port?") from error


def _array(tensor: Any) -> np.ndarray:
    array = tensors.decode(tensor, strict=True)
    return array if array.flags.writeable else array.copy()  # not a view of the answer


def _signature(message: Any) -> Signature:
    return Signature(
        {name: _tensor_spec(info, name in message.defaults) for name, info in message.inputs.items()},
        {name: _tensor_spec(info) for name, info in message.outputs.items()},
        message.method_name,
    )


def _tensor_spec(info: Any, has_default: bool = False) -> TensorSpec:
    shape = info.tensor_shape
    return TensorSpec(
        dtype_name(info.dtype),
        None if shape.unknown_rank else tuple(None if dim.size < 0 else dim.size for dim in shape.dim),
        has_default,
    )
