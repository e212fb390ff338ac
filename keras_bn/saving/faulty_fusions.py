"""Operations written so that the optimizer of TensorFlow does not fuse them wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import tensorflow as tf
from tensorflow.core.framework import function_pb2, graph_pb2, node_def_pb2

from keras_bn.saving.constants import tensor_name

_ADDITIONS = {"Add", "AddV2", "AddN"}
_BIASES = {"BiasAdd", "Add", "AddV2"}
_DEFAULT_SLOPE = 0.2

Nodes: TypeAlias = dict[str, node_def_pb2.NodeDef]


def avoid_faulty_fusions(graph: graph_pb2.GraphDef) -> None:
    """Write what the optimizer fuses wrongly in another way, in `graph` and in its functions.

    The optimizer (TensorFlow 2.21, on a CPU with oneDNN) fuses a convolution, its bias, an addition and an
    activation into one operation.

    - It loses the slope of LeakyRelu, so that the result is that of a slope of 0.2. It fuses
      max(x, slope * x) into the same operation with its slope.
    - Of Mish, it makes an operation that no kernel computes, so that every request fails.
    - Of a depthwise convolution, and of a matrix product with Relu or Relu6, it makes a node without an
      operation, and then drops all that it did to the graph.

    Two reshapes, which move no data and which it does not look through, keep apart what must not be fused.
    """
    for owner in (graph, *graph.library.function):
        nodes = {node.name: node for node in _nodes(owner)}
        for node, position in [*_mish_of_sums(nodes), *_sums_of_depthwise(nodes), *_relu_of_sums(nodes)]:
            _reshape_twice(owner, node, position)
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


def _nodes(owner: graph_pb2.GraphDef | function_pb2.FunctionDef) -> Any:
    """The nodes of a graph or a function, to which others can be added."""
    return owner.node_def if isinstance(owner, function_pb2.FunctionDef) else owner.node


def _mish_of_sums(nodes: Nodes) -> Iterator[tuple[node_def_pb2.NodeDef, int]]:
    """The inputs, a node and a position each, of softplus in x * tanh(softplus(x)) where x is a sum."""
    for tanh in nodes.values():
        softplus = nodes.get(tensor_name(tanh.input[0])) if tanh.op == "Tanh" else None
        if softplus is not None and softplus.op == "Softplus" and _reads(softplus, 0, nodes, _ADDITIONS):
            yield softplus, 0


def _sums_of_depthwise(nodes: Nodes) -> Iterator[tuple[node_def_pb2.NodeDef, int]]:
    """The inputs, a node and a position each, of additions that are depthwise convolutions with a bias."""
    for node in nodes.values():
        for position in range(len(node.input) if node.op in _ADDITIONS else 0):
            if _reads_biased(node, position, nodes, "DepthwiseConv2dNative"):
                yield node, position


def _relu_of_sums(nodes: Nodes) -> Iterator[tuple[node_def_pb2.NodeDef, int]]:
    """The inputs, a node and a position each, of Relu and Relu6 that are sums with a matrix product."""
    for node in nodes.values():
        added = _reads(node, 0, nodes, _ADDITIONS) if node.op in ("Relu", "Relu6") else None
        if added is not None and any(_reads_biased(added, each, nodes, "MatMul") for each in (0, 1)):
            yield node, 0


def _reads_biased(node: node_def_pb2.NodeDef, position: int, nodes: Nodes, kind: str) -> bool:
    """Whether an input of a node is an operation of this kind and a bias."""
    bias = _reads(node, position, nodes, _BIASES)
    return bias is not None and any(_reads(bias, each, nodes, {kind}) for each in (0, 1))


def _reads(
    node: node_def_pb2.NodeDef, position: int, nodes: Nodes, kinds: set[str]
) -> node_def_pb2.NodeDef | None:
    """What an input of a node reads, past identities, if it is one of these operations."""
    before = nodes.get(tensor_name(node.input[position]))
    while before is not None and before.op == "Identity":
        before = nodes.get(tensor_name(before.input[0]))
    return before if before is not None and before.op in kinds else None


def _reshape_twice(
    owner: graph_pb2.GraphDef | function_pb2.FunctionDef, node: node_def_pb2.NodeDef, position: int
) -> None:
    """Put ExpandDims and Squeeze between an input of a node and what it reads."""
    in_function, nodes = isinstance(owner, function_pb2.FunctionDef), _nodes(owner)
    name, dtype = f"{node.name}/apart_{position}", node.attr["T"].type or tf.float32.as_datatype_enum
    axis = nodes.add(name=f"{name}/axis", op="Const")
    axis.attr["dtype"].type = tf.int32.as_datatype_enum
    axis.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0))
    expanded = nodes.add(name=f"{name}/expanded", op="ExpandDims")
    expanded.input[:] = [node.input[position], f"{axis.name}:output:0" if in_function else axis.name]
    expanded.attr["T"].type = dtype
    expanded.attr["Tdim"].type = tf.int32.as_datatype_enum
    squeezed = nodes.add(name=f"{name}/squeezed", op="Squeeze")
    squeezed.input[:] = [f"{expanded.name}:output:0" if in_function else expanded.name]
    squeezed.attr["T"].type = dtype
    squeezed.attr["squeeze_dims"].list.i[:] = [0]
    node.input[position] = f"{squeezed.name}:output:0" if in_function else squeezed.name


def _keep_slopes(owner: graph_pb2.GraphDef | function_pb2.FunctionDef) -> list[str]:
    """Replace the nodes of a graph or a function, and return their names."""
    in_function, nodes = isinstance(owner, function_pb2.FunctionDef), _nodes(owner)
    by_name = {node.name: node for node in nodes}
    replaced = [node for node in nodes if node.op == "LeakyRelu" and _reads(node, 0, by_name, _ADDITIONS)]
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
