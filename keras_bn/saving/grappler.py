"""TensorFlow's own graph optimizer at export: 16-bit arithmetic, fused operations."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2

from keras_bn._tensorflow import never_converted, optimize_graph, use_onednn
from keras_bn.errors import KerasBNError
from keras_bn.saving.constants import tensor_name

_CPU = "/job:localhost/replica:0/task:0/device:CPU:0"
_PRODUCTS = {
    *("Conv2D", "Conv2DBackpropInput", "Conv3D", "Conv3DBackpropInputV2", "DepthwiseConv2dNative"),
    *("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"),
}
# A list of tensors and the loop that fills it, as in an RNN. The loop's body is converted by itself, so what
# enters and leaves it stays as it is.
_LOOPS = (
    *("While", "StatelessWhile", "EmptyTensorList", "TensorListConcat", "TensorListConcatLists"),
    *("TensorListConcatV2", "TensorListFromTensor", "TensorListGather", "TensorListGetItem"),
    *("TensorListLength", "TensorListPopBack", "TensorListPushBack", "TensorListPushBackBatch"),
    *("TensorListReserve", "TensorListResize", "TensorListScatter", "TensorListScatterIntoExistingList"),
    *("TensorListScatterV2", "TensorListSetItem", "TensorListSplit", "TensorListStack"),
)

# The optimizations that the runtime applies to every graph. There is no switch for all of them.
_OPTIMIZERS = (
    "layout_optimizer",
    "constant_folding",
    "shape_optimization",
    "remapping",
    "arithmetic_optimization",
    "dependency_optimization",
    "loop_optimization",
    "function_optimization",
    "debug_stripper",
    "common_subgraph_elimination",
    "implementation_selector",
)


def to_bfloat16(
    graph: graph_pb2.GraphDef, signatures: Mapping[str, meta_graph_pb2.SignatureDef]
) -> graph_pb2.GraphDef:
    """Let convolutions, matrix products and the operations between them compute in bfloat16.

    oneDNN sums in float32. Means, exponentials, softmax, inputs and outputs remain float32.

    Raises:
        KerasBNError: If there is no such operation, or if TensorFlow on this machine cannot convert it.
    """
    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    for name in _OPTIMIZERS:
        setattr(options, name, rewriter_config_pb2.RewriterConfig.OFF)
    options.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    options.auto_mixed_precision_onednn_bfloat16 = rewriter_config_pb2.RewriterConfig.ON
    with never_converted(_LOOPS):
        converted = _optimized(meta_graph_pb2.MetaGraphDef(graph_def=graph, signature_def=signatures), config)
    narrow = tf.bfloat16.as_datatype_enum
    functions = (function.node_def for function in converted.library.function)
    nodes = itertools.chain(converted.node, *functions)
    if not any(node.op in _PRODUCTS and node.attr["T"].type == narrow for node in nodes):
        raise KerasBNError(
            "precision='bfloat16' changes nothing: the graph has no convolution or matrix product in "
            "float32, or TensorFlow on this machine has no oneDNN; export with precision='float32'."
        )
    return converted


def narrow_weights(graph: graph_pb2.GraphDef, weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Give weights that `graph` casts to bfloat16 in 16 bits, and remove the casts from it.

    Args:
        graph: What `to_bfloat16` returned. It is edited.
        weights: The values of placeholders in it.

    Returns:
        `weights`, with those that only such casts read in bfloat16.
    """
    narrow = tf.bfloat16.as_datatype_enum
    casts = {
        node.name: tensor_name(node.input[0])
        for node in graph.node
        if node.op == "Cast" and node.attr["DstT"].type == narrow and tensor_name(node.input[0]) in weights
    }
    read_otherwise = {
        tensor_name(read) for node in graph.node if node.name not in casts for read in node.input
    }
    casts = {name: weight for name, weight in casts.items() if weight not in read_otherwise}
    for node in graph.node:
        if node.name in casts.values():
            node.attr["dtype"].type = narrow
        node.input[:] = [casts.get(tensor_name(read), read) for read in node.input]
    remaining = [node for node in graph.node if node.name not in casts]
    del graph.node[:]
    graph.node.extend(remaining)
    return {
        name: value.astype(tf.bfloat16.as_numpy_dtype) if name in casts.values() else value
        for name, value in weights.items()
    }


def fuse(meta_graph: meta_graph_pb2.MetaGraphDef, weights: Container[str]) -> graph_pb2.GraphDef:
    """The graph of `meta_graph` as TensorFlow optimizes it when it is loaded, for a CPU.

    Convolutions and matrix products become operations of oneDNN. Those with constant filters pack them once,
    which the runtime itself does only as long as the filters are constants. Here they may become variables,
    and the placeholders `weights` will.
    """
    graph = _optimized(meta_graph, config_pb2.ConfigProto())
    constants = {node.name for node in graph.node if node.op == "Const" or node.name in weights}
    for node in graph.node:
        if len(node.input) > 1:
            use_onednn(node, fixed_filter=tensor_name(node.input[1]) in constants)
    return graph


def _optimized(meta_graph: meta_graph_pb2.MetaGraphDef, config: config_pb2.ConfigProto) -> graph_pb2.GraphDef:
    placed = meta_graph_pb2.MetaGraphDef()
    placed.CopyFrom(meta_graph)
    for node in placed.graph_def.node:
        node.device = _CPU  # what is placed nowhere is neither fused nor converted
    config.graph_options.rewrite_options.min_graph_nodes = -1
    graph = optimize_graph(placed, config)
    for node in graph.node:
        node.device = ""
    return graph
