"""Operations written so that the optimizer of TensorFlow fuses them with convolutions."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2

from keras_bn.saving.constants import constant_node, prune, tensor_name

_ADDITIONS = {"Add", "AddV2", "AddN"}
_FUSED_AFTER_BIAS = {"Relu", "Relu6", "Elu", "LeakyRelu", "Add", "AddV2"}
_PRODUCTS = {"Conv2D", "DepthwiseConv2dNative", "MatMul"}


def skip_identities(graph: graph_pb2.GraphDef, fetches: list[str]) -> graph_pb2.GraphDef:
    """`graph` without Identity, IdentityN and multiplications by 1 between operations.

    Keras's swish is x * sigmoid(1 * x) behind an IdentityN. The optimizer removes the multiplication only
    after it has looked for a convolution with a bias and swish, so that swish would be a pass over memory of
    its own.
    """
    nodes = {node.name: node for node in graph.node}
    for node in graph.node:
        for position, read in enumerate(node.input):
            if not read.startswith("^"):
                node.input[position] = _computed(read, nodes)
    return prune(graph, fetches)


def _computed(read: str, nodes: dict[str, node_def_pb2.NodeDef]) -> str:
    """The output that an input of a node repeats, or the input itself."""
    while True:
        name, _, index = read.partition(":")
        node = nodes[name]
        if any(each.startswith("^") for each in node.input):
            return read
        if node.op in ("Identity", "IdentityN"):
            read = node.input[int(index or 0)]
        elif node.op == "Mul" and (factors := [each for each in node.input if not _is_one(nodes, each)]) != [
            *node.input
        ]:
            read = (factors or node.input)[0]
        else:
            return read


def _is_one(nodes: dict[str, node_def_pb2.NodeDef], read: str) -> bool:
    """Whether it is the number 1, of no shape that could broadcast."""
    node = nodes[tensor_name(read)]
    if node.op != "Const" or node.attr["value"].tensor.tensor_shape.dim:
        return False
    return bool(tf.make_ndarray(node.attr["value"].tensor) == 1)


def give_biases(graph: graph_pb2.GraphDef, fetches: list[str]) -> None:
    """Add a bias to convolutions and matrix products whose activation or shortcut follows without one.

    The optimizer fuses an activation, or the addition of a shortcut, only together with a bias. Without one,
    it is a pass over memory of its own. The bias is the smallest normal number, which changes no output: one
    of zeros would be removed as redundant first.
    """
    nodes = {node.name: node for node in graph.node}
    consumers: dict[str, list[node_def_pb2.NodeDef]] = {}
    for node in graph.node:
        for read in node.input:
            consumers.setdefault(tensor_name(read), []).append(node)
    fetched = {tensor_name(fetch) for fetch in fetches}
    for node in list(graph.node):
        following = consumers.get(node.name, [])
        channels = _channels(node, nodes)
        if channels is None or node.name in fetched or len(following) != 1:
            continue
        (consumer,) = following
        if consumer.op not in _FUSED_AFTER_BIAS or _adds_constant(consumer, nodes):
            continue
        dtype = tf.float32.as_datatype_enum
        tiny = np.full(channels, np.finfo(np.float32).tiny)
        read = constant_node(graph, f"{node.name}/tiny", tiny, dtype).name
        bias = graph.node.add(name=f"{node.name}/biased", op="BiasAdd", input=[node.name, read])
        bias.attr["T"].type = dtype
        for position, read in enumerate(consumer.input):
            if tensor_name(read) == node.name:
                consumer.input[position] = bias.name


def _channels(node: node_def_pb2.NodeDef, nodes: dict[str, node_def_pb2.NodeDef]) -> int | None:
    """The number of output channels, last in the output, of a float32 product with a constant filter."""
    if node.op not in _PRODUCTS or node.attr["T"].type != tf.float32.as_datatype_enum:
        return None
    if "data_format" in node.attr and node.attr["data_format"].s != b"NHWC":
        return None
    filters = nodes.get(tensor_name(node.input[1]))
    if filters is None or filters.op != "Const":
        return None
    shape = [dim.size for dim in filters.attr["value"].tensor.tensor_shape.dim]
    if node.op == "DepthwiseConv2dNative":
        return shape[-2] * shape[-1]
    return shape[-2] if node.op == "MatMul" and node.attr["transpose_b"].b else shape[-1]


def _adds_constant(node: node_def_pb2.NodeDef, nodes: dict[str, node_def_pb2.NodeDef]) -> bool:
    """Whether it is a bias already."""
    reads = (nodes.get(tensor_name(read)) for read in node.input)
    return node.op in _ADDITIONS and any(read is not None and read.op == "Const" for read in reads)
