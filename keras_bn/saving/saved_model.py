"""Writing a SavedModel: the weights as constants of one graph, or as variables where they cannot be."""

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from keras_bn.saving.images import Decoder
from keras_bn.saving.signatures import Signature

SERVING_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
SERVING_IMAGE = "serving_image"
IMAGE_BYTES = "image_bytes"

# A graph is one protobuf message, and those end at 2 GiB. What this leaves is for the nodes.
LARGEST_CONSTANTS = 2**31 - 2**26


def write(model: keras.Model, signature: Signature, folder: Path, decoder: Decoder | None = None) -> str:
    """Write the `signature` of `model` into `folder`; return what the weights became, "constants" or
    "variables".

    With a `decoder` a second signature takes image files; the two share the weights.
    """
    traced = _trace(signature.call, list(signature.inputs.values()))
    size = sum(variable.shape.num_elements() * variable.dtype.size for variable in traced.variables)
    tables = _tables(model)
    # Tables (of a StringLookup, say) are filled when a model is loaded, which only the other form can do.
    if tables or size > LARGEST_CONSTANTS:
        _write_variables(signature, traced, tables, folder, decoder)
        return "variables"
    _write_constants(signature, traced, folder, decoder)
    return "constants"


def _trace(function: Any, specs: list[tf.TensorSpec]) -> Any:
    return tf.function(function, input_signature=specs, autograph=False).get_concrete_function()


def _tables(model: keras.Model) -> list[Any]:
    resources = tf.saved_model.experimental.TrackableResource
    return [part for part in tf.train.TrackableView(model).descendants() if isinstance(part, resources)]


def _write_constants(signature: Signature, traced: Any, folder: Path, decoder: Decoder | None) -> None:
    frozen = convert_variables_to_constants_v2(traced)
    # The traced function lists its captured tensors after its arguments.
    inputs = dict(zip(signature.inputs, traced.inputs, strict=False))
    outputs = dict(zip(signature.outputs, frozen.outputs, strict=True))
    graph = frozen.graph.as_graph_def()
    signatures = {SERVING_DEFAULT: _signature(inputs, outputs)}
    if decoder is not None:
        (pixels,) = inputs.values()
        graph, image_bytes = _decoding_before(graph, pixels, decoder)
        signatures[SERVING_IMAGE] = _signature({IMAGE_BYTES: image_bytes}, outputs)
    for node in graph.node:
        node.device = ""  # the device that traced it need not be one that serves it
    meta_graph = meta_graph_pb2.MetaGraphDef(graph_def=graph, signature_def=signatures)
    meta_graph.meta_info_def.tags.append(tf.saved_model.SERVING)
    meta_graph.meta_info_def.tensorflow_version = tf.__version__
    saved_model = saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[meta_graph])
    (folder / "saved_model.pb").write_bytes(saved_model.SerializeToString())


def _signature(inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]) -> meta_graph_pb2.SignatureDef:
    def info(tensor: tf.Tensor) -> meta_graph_pb2.TensorInfo:
        return meta_graph_pb2.TensorInfo(
            name=tensor.name, dtype=tensor.dtype.as_datatype_enum, tensor_shape=tensor.shape.as_proto()
        )

    return meta_graph_pb2.SignatureDef(
        method_name=tf.saved_model.PREDICT_METHOD_NAME,
        inputs={name: info(tensor) for name, tensor in inputs.items()},
        outputs={name: info(tensor) for name, tensor in outputs.items()},
    )


def _decoding_before(
    graph: graph_pb2.GraphDef, pixels: tf.Tensor, decoder: Decoder
) -> tuple[graph_pb2.GraphDef, tf.Tensor]:
    """Put the decoder before the placeholder `pixels`, which still can be fed; return its own placeholder
    too."""
    spec = tf.TensorSpec([None], tf.string, IMAGE_BYTES)
    decoding = convert_variables_to_constants_v2(_trace(decoder, [spec]))
    (image_bytes,), (decoded,) = decoding.inputs, decoding.outputs
    with tf.Graph().as_default() as joined:
        image_bytes, decoded = tf.import_graph_def(
            decoding.graph.as_graph_def(),
            return_elements=[image_bytes.name, decoded.name],
            name=SERVING_IMAGE,
        )
        rest = graph_pb2.GraphDef()
        rest.CopyFrom(graph)
        del rest.node[:]
        rest.node.extend(node for node in graph.node if node.name != pixels.op.name)
        default = tf.compat.v1.placeholder_with_default(decoded, pixels.shape, name=pixels.op.name)
        tf.import_graph_def(rest, input_map={pixels.name: default}, name="")
    return joined.as_graph_def(), image_bytes


def _write_variables(
    signature: Signature, traced: Any, tables: list[Any], folder: Path, decoder: Decoder | None
) -> None:
    module = tf.Module()
    module.variables_and_tables = [*traced.variables, *tables]

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(signature.outputs, signature.call(*tensors), strict=True))

    module.serve = tf.function(serve, input_signature=list(signature.inputs.values()))
    signatures = {SERVING_DEFAULT: module.serve}
    if decoder is not None:
        spec = tf.TensorSpec([None], tf.string, IMAGE_BYTES)
        module.serve_image = tf.function(
            lambda image_bytes: serve(decoder(image_bytes)), input_signature=[spec]
        )
        signatures[SERVING_IMAGE] = module.serve_image
    tf.saved_model.save(module, str(folder), signatures=signatures)
