"""Fold the constants of a graph, and remove nodes that are not needed."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import config_pb2

# Larger results are left to be computed: a broadcast would be written out into the file.
_LARGEST = 2**24
_KEPT = {"Placeholder", "PlaceholderWithDefault", "NoOp"}


def tensor_name(read: str) -> str:
    """The node behind an input of another node, which may name one of its outputs or be a control input."""
    return read.removeprefix("^").partition(":")[0]


def constant_node(graph: graph_pb2.GraphDef, name: str, value: object, dtype: int) -> graph_pb2.NodeDef:
    """Add a constant to `graph`."""
    node = graph.node.add(name=name, op="Const")
    node.attr["dtype"].type = dtype
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype=dtype))
    return node


def write_bfloat16_as_bytes(graph: graph_pb2.GraphDef) -> None:
    """Write constants of bfloat16 as bytes, the only one of a tensor's forms in which OpenVINO reads them."""
    for node in graph.node:
        if node.op == "Const" and node.attr["dtype"].type == tf.bfloat16.as_datatype_enum:
            tensor = node.attr["value"].tensor
            if not tensor.tensor_content:
                tensor.tensor_content = tf.make_ndarray(tensor).tobytes()
                tensor.ClearField("half_val")


def prune(graph: graph_pb2.GraphDef, fetches: Iterable[str]) -> graph_pb2.GraphDef:
    """The part of `graph` that its placeholders and `fetches` need."""
    nodes = {node.name: node for node in graph.node}
    needed = {node.name for node in graph.node if node.op in _KEPT - {"NoOp"}}
    waiting = [*needed, *map(tensor_name, fetches)]
    needed.clear()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += map(tensor_name, nodes[name].input)
    pruned = graph_pb2.GraphDef(versions=graph.versions, library=graph.library)
    pruned.node.extend(node for node in graph.node if node.name in needed)
    return pruned


def fold_constants(graph: graph_pb2.GraphDef, fetches: list[str]) -> graph_pb2.GraphDef:
    """Replace nodes that depend only on constants by their values, as this runtime computes them."""
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph, name="")
    foldable = {
        operation.name
        for operation in imported.get_operations()
        if operation.type not in _KEPT
        and [output.dtype in (tf.variant, tf.resource) for output in operation.outputs] == [False]
        and not operation.op_def.is_stateful
    }
    fixed: set[str] = set()
    for node in graph.node:  # in the order of the trace, in which what is read comes first
        reads = [tensor_name(read) for read in node.input]
        constant = node.op == "Const" and not reads
        if constant or (reads and node.name in foldable and fixed.issuperset(reads)):
            fixed.add(node.name)
    computed = {node.name for node in graph.node if node.name in fixed and node.op != "Const"}
    frontier = sorted(
        {
            tensor_name(read)
            for node in graph.node
            if node.name not in fixed
            for read in node.input
            if tensor_name(read) in computed and not read.startswith("^")
        }
        | {tensor_name(fetch) for fetch in fetches if tensor_name(fetch) in computed}
    )
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.compat.v1.Session(graph=imported, config=config) as session:
        values = dict(zip(frontier, session.run([f"{name}:0" for name in frontier]), strict=True))
    nodes = {node.name: node for node in graph.node}
    for name, value in values.items():
        if value.nbytes <= _LARGEST or nodes[name].op in ("Cast", "Identity", "Reshape", "Squeeze"):
            dtype = imported.get_tensor_by_name(f"{name}:0").dtype
            nodes[name].Clear()
            nodes[name].name, nodes[name].op = name, "Const"
            nodes[name].attr["dtype"].type = dtype.as_datatype_enum
            nodes[name].attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype=dtype))
    return prune(graph, fetches)
