"""Messages that both APIs answer with: which model, its signatures, the states of its versions."""

from google.protobuf.message import Message
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from keras_bn_serving.local_server.inference import Model
from keras_bn_serving.local_server.manager import Manager
from keras_bn_serving.wire.status import CODES


def spec_of(name: str, number: int, signature_name: str = "") -> model_pb2.ModelSpec:
    """Which model, version and signature a response comes from."""
    return model_pb2.ModelSpec(name=name, version={"value": number}, signature_name=signature_name)


def signature_map(model: Model) -> get_model_metadata_pb2.SignatureDefMap:
    """All signatures of a model."""
    return get_model_metadata_pb2.SignatureDefMap(signature_def=model.signatures)


def status_response(manager: Manager, name: str, number: int | None) -> Message:
    """The states of a model's versions, or of one of them, the highest first."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for version in manager.status(name, number):
        code, message = (version.error.code, str(version.error)) if version.error else ("OK", "")
        status = {"error_code": CODES.index(code), "error_message": message}
        response.model_version_status.add(version=version.number, state=version.state, status=status)
    return response
