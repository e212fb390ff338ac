"""Operations written so that the optimizer of TensorFlow fuses them with convolutions, correctly."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import function_pb2, graph_pb2, node_def_pb2

from keras_bn.saving.constants import constant_node, prune, tensor_name

_ADDITIONS = {"Add", "AddV2", "AddN"}
_FUSED_AFTER_BIAS = {"Relu", "Relu6", "Elu", "LeakyRelu", "Add", "AddV2"}
_DEFAULT_SLOPE = 0.2
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


def keep_slopes(graph: graph_pb2.GraphDef) -> None:
    """Write LeakyRelu after an addition as max(x, slope * x), in `graph` and in its functions.

    The optimizer (TensorFlow 2.21, on a CPU with oneDNN) fuses a convolution, its bias, an addition and
    LeakyRelu into one operation and loses the slope, so that the result is that of a slope of 0.2. It fuses
    the maximum into the same operation with its slope.
    """
    _keep_slopes(graph)
    for function in graph.library.function:
        # What reads an output in a function names it as the operation does: "activations" here, "z" there.
        replaced = _keep_slopes(function)
        old = {f"{name}:activations:0": f"{name}:z:0" for name in replaced}
        for node in function.node_def:
            for position, read in enumerate(node.input):
                node.input[position] = old.get(read, read)
        for name, read in function.ret.items():
            function.ret[name] = old.get(read, read)


def _keep_slopes(owner: graph_pb2.GraphDef | function_pb2.FunctionDef) -> list[str]:
    """Replace the nodes of a graph or a function, and return their names."""
    in_function = isinstance(owner, function_pb2.FunctionDef)
    nodes = owner.node_def if in_function else owner.node
    by_name = {node.name: node for node in nodes}
    replaced = [node for node in nodes if node.op == "LeakyRelu" and _reads_addition(node, by_name)]
    for node in replaced:
        # A SavedModel leaves out attributes that have their default.
        dtype = node.attr["T"].type if "T" in node.attr else tf.float32.as_datatype_enum
        slope = node.attr["alpha"].f if "alpha" in node.attr else _DEFAULT_SLOPE
        read = node.input[0]
        constant = nodes.add(name=f"{node.name}/slope", op="Const")
        constant.attr["dtype"].type = dtype
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(slope, dtype=dtype))
        scaled = nodes.add(name=f"{node.name}/scaled", op="Mul")
        scaled.input[:] = [read, f"{constant.name}:output:0" if in_function else constant.name]
        scaled.attr["T"].type = node.attr["T"].type = dtype
        node.op = "Maximum" if slope <= 1 else "Minimum"
        node.input.insert(1, f"{scaled.name}:z:0" if in_function else scaled.name)  # before control inputs
        node.attr.pop("alpha", None)
    return [node.name for node in replaced]


def _reads_addition(node: node_def_pb2.NodeDef, by_name: dict[str, node_def_pb2.NodeDef]) -> bool:
    before = by_name.get(tensor_name(node.input[0]))
    while before is not None and before.op == "Identity":
        before = by_name.get(tensor_name(before.input[0]))
    return before is not None and before.op in _ADDITIONS


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
