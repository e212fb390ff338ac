"""Writing a SavedModel: the weights as constants of one plain graph, or as variables when they are too
many."""

from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from keras_bn.saving.signatures import Signature

SERVING_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY

# A graph is one protobuf message, and those end at 2 GiB; the rest is left to the nodes.
LARGEST_CONSTANTS = 2**31 - 2**26


def write(signature: Signature, folder: Path) -> str:
    """Write `signature` as the `serving_default` of a SavedModel in `folder`; return how: "constants" or
    "variables".

    Constants are the faster: the runtime folds them, and packs a filter once instead of at every call.
    """
    traced = tf.function(
        signature.call, input_signature=list(signature.inputs.values())
    ).get_concrete_function()
    if (
        sum(variable.shape.num_elements() * variable.dtype.size for variable in traced.variables)
        < LARGEST_CONSTANTS
    ):
        _write_constants(signature, traced, folder)
        return "constants"
    _write_variables(signature, traced, folder)
    return "variables"


def _write_constants(
    signature: Signature, traced: tf.types.experimental.ConcreteFunction, folder: Path
) -> None:
    frozen = convert_variables_to_constants_v2(traced)
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(frozen.graph.as_graph_def(), name="")
        definition = meta_graph_pb2.SignatureDef(method_name=tf.saved_model.PREDICT_METHOD_NAME)
        for name, tensor in zip(signature.inputs, traced.inputs, strict=False):
            definition.inputs[name].CopyFrom(_tensor_info(graph.get_tensor_by_name(tensor.name)))
        for name, tensor in zip(signature.outputs, frozen.outputs, strict=True):
            definition.outputs[name].CopyFrom(_tensor_info(graph.get_tensor_by_name(tensor.name)))
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session, [tf.saved_model.SERVING], {SERVING_DEFAULT: definition}, clear_devices=True
        )
        builder.save()


def _tensor_info(tensor: tf.Tensor) -> meta_graph_pb2.TensorInfo:
    return meta_graph_pb2.TensorInfo(
        name=tensor.name, dtype=tensor.dtype.as_datatype_enum, tensor_shape=tensor.shape.as_proto()
    )


def _write_variables(
    signature: Signature, traced: tf.types.experimental.ConcreteFunction, folder: Path
) -> None:
    module = tf.Module()
    module.captured = list(traced.variables)

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(signature.outputs, signature.call(*tensors), strict=True))

    module.serve = tf.function(serve, input_signature=list(signature.inputs.values()))
    tf.saved_model.save(module, str(folder), signatures={SERVING_DEFAULT: module.serve})
