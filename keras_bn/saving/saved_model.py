"""Write a SavedModel: one plain graph with the weights, or functions if there are tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from keras_bn.errors import KerasBNError
from keras_bn.saving.constants import fold_constants, tensor_name, write_bfloat16_as_bytes
from keras_bn.saving.depthwise import write_depthwise
from keras_bn.saving.faulty_fusions import avoid_faulty_fusions
from keras_bn.saving.graph_fold import fold_graph
from keras_bn.saving.graph_fusion import give_biases, skip_identities
from keras_bn.saving.grappler import fuse, narrow_weights, to_bfloat16
from keras_bn.saving.guard import guard
from keras_bn.saving.images import Decoder
from keras_bn.saving.plain_graph import LARGEST_OPTIMIZED, write_plain_graph
from keras_bn.saving.signatures import Signature

SERVING_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
SERVING_IMAGE = "serving_image"
IMAGE_BYTES = "image_bytes"

# A SavedModel's graph is a protocol buffer, which holds less than 2 GiB. Past this many bytes, the largest
# weights are variables from the start, and the graph is not rewritten.
LARGEST_CONSTANTS = 2**30

Named = Mapping[str, tf.Tensor]


@dataclass(frozen=True)
class Options:
    """How a graph is written.

    Attributes:
        fold: If True, fold the operations after a convolution into it (`fold_graph`).
        bfloat16: If True, compute convolutions and matrix products in bfloat16.
        fused: If True, let TensorFlow fuse operations now. Only TensorFlow with oneDNN can read the result.
    """

    fold: bool = True
    bfloat16: bool = False
    fused: bool = False


def write(
    model: keras.Model,
    signature: Signature,
    folder: Path,
    decoder: Decoder | None = None,
    options: Options | None = None,
) -> int:
    """Write the `signature` of `model` as `serving_default` of a SavedModel in `folder`.

    With a `decoder`, a second signature, `serving_image`, takes image files. Both signatures share the
    weights. Each weight is in the files once.

    Returns:
        The number of multiplications by constants that were folded into convolutions.

    Raises:
        KerasBNError: If the model changes its state when it is called, because a layer is in training mode,
            draws random numbers, or keeps a state from one call to the next.
    """
    options = options or Options()
    serve = _trace(_with_constants(model, signature), list(signature.inputs.values()))
    decode = decoder and _trace(decoder, [tf.TensorSpec([None], tf.string, IMAGE_BYTES)])
    captured = [*serve.captured_inputs, *(decode.captured_inputs if decode else ())]
    # Variables and tables (of a StringLookup, say) are resources, filled when the model is loaded.
    if any(tensor.dtype == tf.resource for tensor in captured):
        if options.bfloat16 or options.fused:
            raise KerasBNError(
                f"model {model.name!r} has lookup tables, or too many weights to be constants; export it "
                "with precision='float32' and fused=False."
            )
        _write_objects(model, serve, decode, folder)
        return 0
    return _write_graph(signature, serve, decode, folder, options)


def _trace(function: Callable[..., Any], specs: list[tf.TensorSpec]) -> Any:
    return tf.function(function, input_signature=specs, autograph=False).get_concrete_function()


def _with_constants(model: keras.Model, signature: Signature) -> Callable[..., dict[str, tf.Tensor]]:
    values = [(variable, variable.numpy()) for variable in model.variables]
    values.sort(key=lambda each: each[1].nbytes)
    left = LARGEST_CONSTANTS
    if sum(value.nbytes for _, value in values) > left:
        left = min(left, LARGEST_OPTIMIZED)
    constants = []
    for variable, value in values:
        left -= value.nbytes
        if left < 0:
            break
        # A tensor from outside the function is an input of it, and no copy is in its graph.
        constants.append((variable, tf.constant(value) if value.nbytes > LARGEST_OPTIMIZED else value))

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        replaced = [(variable, tf.convert_to_tensor(value)) for variable, value in constants]
        before = {id(variable): constant for variable, constant in replaced}
        with keras.StatelessScope(state_mapping=replaced) as scope:
            outputs = signature.call(*tensors)
        for variable in model.variables:
            if scope.get_current_value(variable) is not before.get(id(variable)):
                raise KerasBNError(
                    f"model {model.name!r} changes {variable.path} when it answers; call its layers with "
                    "training=False, and keep no state from one request to the next."
                )
        return dict(zip(signature.outputs, outputs, strict=True))

    return serve


def _write_graph(signature: Signature, serve: Any, decode: Any | None, folder: Path, options: Options) -> int:
    """Write one plain graph, which loads several times faster than the same constants inside functions."""
    # The traced function lists its captured tensors after its arguments, and its outputs by name.
    inputs = dict(zip(signature.inputs, serve.inputs, strict=False))
    outputs = dict(zip(sorted(signature.outputs), serve.outputs, strict=True))
    signatures = {SERVING_DEFAULT: _signature(inputs, outputs)}
    fetches = [tensor.name for tensor in outputs.values()]
    graph, captured = serve.graph.as_graph_def(), _captured(serve)
    variables = _large(graph, captured)
    _fill(graph, {name: tensor for name, tensor in captured.items() if name not in variables})
    graph, folded = fold_constants(graph, fetches), 0
    write_depthwise(graph)
    if options.fold:
        graph, folded = fold_graph(graph, fetches)
    graph = skip_identities(graph, fetches)
    give_biases(graph, fetches)
    avoid_faulty_fusions(graph)
    if options.bfloat16:
        graph = fold_constants(to_bfloat16(graph, signatures), fetches)
        variables = narrow_weights(graph, variables)
    write_bfloat16_as_bytes(graph)
    if decode is not None:
        (pixels,) = inputs.values()
        graph, image_bytes = _decoding_before(graph, pixels, decode)
        signatures[SERVING_IMAGE] = _signature({IMAGE_BYTES: image_bytes}, outputs)
    for node in graph.node:
        node.device = ""  # the device that traced it need not be one that serves it
    meta_graph = meta_graph_pb2.MetaGraphDef(graph_def=graph, signature_def=signatures)
    meta_graph.meta_info_def.tags.append(tf.saved_model.SERVING)
    meta_graph.meta_info_def.tensorflow_version = tf.__version__
    guard(meta_graph)
    if options.fused:
        meta_graph.graph_def.CopyFrom(fuse(meta_graph, variables))
    write_plain_graph(meta_graph, folder, options.fused, variables)
    return folded


def _captured(function: Any) -> dict[str, tf.Tensor]:
    """The tensors from outside that a traced function reads, by the placeholders that stand for them.

    Those of few values have none: they are constants in the graph.
    """
    return {
        inner.op.name: outer for outer, inner in function.graph.captures if inner.op.type == "Placeholder"
    }


def _large(graph: graph_pb2.GraphDef, captured: Named) -> dict[str, NDArray[Any]]:
    """The large ones of `captured` that only matrix products read.

    As variables they take as long, and the graph is rewritten, which copies constants, without them.
    """
    large = {
        name: tensor
        for name, tensor in captured.items()
        if tensor.dtype.size * tensor.shape.num_elements() > LARGEST_OPTIMIZED
    }
    for node in graph.node:
        for position, read in enumerate(node.input):
            if not (node.op == "MatMul" and position == 1):
                large.pop(tensor_name(read), None)
    return {name: tensor.numpy() for name, tensor in large.items()}


def _fill(graph: graph_pb2.GraphDef, captured: Named) -> None:
    """Replace placeholders by constants."""
    for node in graph.node:
        if node.name in captured:
            value = tf.make_tensor_proto(captured[node.name].numpy())
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = value.dtype
            node.attr["value"].tensor.CopyFrom(value)


def _signature(inputs: Named, outputs: Named) -> meta_graph_pb2.SignatureDef:
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
    graph: graph_pb2.GraphDef, pixels: tf.Tensor, decode: Any
) -> tuple[graph_pb2.GraphDef, tf.Tensor]:
    """Let the decoder feed the placeholder `pixels` where no request does; return the decoder's own."""
    rest = graph_pb2.GraphDef(versions=graph.versions, library=graph.library)
    rest.node.extend(node for node in graph.node if node.name != pixels.op.name)
    decoding = decode.graph.as_graph_def()
    _fill(decoding, _captured(decode))
    with tf.Graph().as_default() as joined:
        image_bytes, decoded = tf.import_graph_def(
            decoding,
            name=SERVING_IMAGE,
            return_elements=[decode.inputs[0].name, decode.outputs[0].name],
        )
        fed = tf.compat.v1.placeholder_with_default(decoded, pixels.shape, name=pixels.op.name)
        tf.import_graph_def(rest, name="", input_map={pixels.name: fed})
    return joined.as_graph_def(), image_bytes


def _write_objects(model: keras.Model, serve: Any, decode: Any | None, folder: Path) -> None:
    """Write the variables and tables that the functions use, and the functions."""
    resource = tf.saved_model.experimental.TrackableResource
    module = tf.Module()
    module.tables = [
        part for part in tf.train.TrackableView(model).descendants() if isinstance(part, resource)
    ]
    module.serve_variables = list(serve.variables)
    signatures = {SERVING_DEFAULT: serve}
    if decode is not None:
        module.decode_variables = list(decode.variables)
        signatures[SERVING_IMAGE] = _trace(
            lambda image_bytes: serve(decode(image_bytes)), [tf.TensorSpec([None], tf.string, IMAGE_BYTES)]
        )
    tf.saved_model.save(module, str(folder), signatures=signatures)
    file = folder / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    avoid_faulty_fusions(saved_model.meta_graphs[0].graph_def)
    guard(saved_model.meta_graphs[0])
    file.write_bytes(saved_model.SerializeToString())
