"""A form of LeakyRelu that TensorFlow's graph optimizer fuses correctly."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from keras_bn.saving.constants import tensor_name

_ADDITIONS = {"Add", "AddV2"}


def rewrite_leaky_relus(meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
    """Write every LeakyRelu behind an addition as the maximum, or minimum, of x and alpha * x.

    On CPUs, Grappler fuses Conv2D, BiasAdd, AddV2 and LeakyRelu into one operation and loses `alpha`
    (TensorFlow 2.21). It recognizes the maximum as a LeakyRelu too, and fuses it with the right slope.
    """
    _rewrite(meta_graph.graph_def.node)
    for function in meta_graph.graph_def.library.function:
        # Inside functions, a read names the output of the operation: LeakyRelu's is called "activations".
        reads = {
            f"{name}:activations:0": f"{name}:z:0" for name in _rewrite(function.node_def, in_function=True)
        }
        for node in function.node_def:
            node.input[:] = [reads.get(read, read) for read in node.input]
        for name, read in function.ret.items():
            function.ret[name] = reads.get(read, read)


def _rewrite(nodes: Any, in_function: bool = False) -> list[str]:
    """Rewrite nodes in place, and return the names of those that were changed."""
    operations = {node.name: node.op for node in nodes}
    changed = [
        node
        for node in nodes
        if node.op == "LeakyRelu" and operations.get(tensor_name(node.input[0])) in _ADDITIONS
    ]
    for node in changed:
        # What is the default of the operation need not be written in the file.
        alpha = node.attr["alpha"].f if "alpha" in node.attr else 0.2
        dtype = node.attr["T"].type or tf.float32.as_datatype_enum
        node.attr["T"].type = dtype
        slope, scaled = f"{node.name}/slope", f"{node.name}/scaled"
        constant = nodes.add(name=slope, op="Const")
        constant.attr["dtype"].type = dtype
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(alpha, dtype=tf.as_dtype(dtype)))
        product = nodes.add(name=scaled, op="Mul")
        product.input[:] = [node.input[0], f"{slope}:output:0" if in_function else slope]
        product.attr["T"].type = dtype
        node.op = "Maximum" if alpha <= 1 else "Minimum"
        node.attr.pop("alpha", None)
        node.input.insert(1, f"{scaled}:z:0" if in_function else scaled)
    return [node.name for node in changed]
