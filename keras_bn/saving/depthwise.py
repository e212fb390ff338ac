"""Grouped convolutions of one channel to a group, as the depthwise convolutions that they are."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.core.framework import function_pb2, graph_pb2, node_def_pb2

from keras_bn.saving.constants import constant_node, tensor_name

_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}


def write_depthwise(graph: graph_pb2.GraphDef) -> int:
    """Write convolutions with as many groups as input channels as DepthwiseConv2dNative, in `graph`.

    On TensorFlow, Keras compiles every convolution with `groups` above 1 with XLA, which on a CPU is ten
    times slower than the kernels of TensorFlow, and which hides the convolution from its optimizer. With one
    input channel to a group, as in ConvNeXt, it is a depthwise convolution.

    Args:
        graph: A graph whose constants are folded. Convolutions whose filters are not constant stay as they
            are, as do those with more than one channel to a group.

    Returns:
        The number of convolutions that were rewritten.
    """
    functions = {function.signature.name: function for function in graph.library.function}
    nodes = {node.name: node for node in graph.node}
    found = []
    for node in graph.node:
        convolution = _convolution(functions.get(node.attr["f"].func.name)) if node.op in _CALLS else None
        if convolution is None:
            continue
        filters = nodes.get(tensor_name(node.input[1]))
        if filters is not None and filters.op == "Const":
            found.append((node, convolution, tf.make_ndarray(filters.attr["value"].tensor)))
    if not found:
        return 0
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph, name="")
    rewritten = 0
    for node, convolution, filters in found:
        name, _, index = node.input[0].partition(":")
        channels = imported.get_tensor_by_name(f"{name}:{index or 0}").shape[-1]
        height, width, depth, outputs = filters.shape
        if depth != 1 or channels in (None, 1) or outputs % channels:
            continue
        dtype = convolution.attr["T"].type
        reshaped = filters.reshape(height, width, channels, outputs // channels)
        read = constant_node(graph, f"{node.name}/depthwise_filter", reshaped, dtype).name
        node.op = "DepthwiseConv2dNative"
        node.input[1] = read
        node.attr.clear()
        for key in ("T", "strides", "padding", "dilations", "data_format"):
            if key in convolution.attr:
                node.attr[key].CopyFrom(convolution.attr[key])
        rewritten += 1
    return rewritten


def _convolution(function: function_pb2.FunctionDef | None) -> node_def_pb2.NodeDef | None:
    """The convolution that is all that a function of an input and a filter computes, if there is one."""
    if function is None or len(function.signature.input_arg) != 2 or len(function.signature.output_arg) != 1:
        return None
    computed = [node for node in function.node_def if node.op not in ("Identity", "NoOp")]
    if len(computed) != 1 or computed[0].op != "Conv2D":
        return None
    (node,) = computed
    strides = node.attr["strides"].list.i
    suits = node.attr["padding"].s in (b"SAME", b"VALID") and strides[1] == strides[2]
    reads = [tensor_name(read) for read in node.input]
    if not suits or node.attr["data_format"].s not in (b"", b"NHWC"):
        return None
    return node if reads == [argument.name for argument in function.signature.input_arg] else None
