"""What OpenVINO would answer otherwise than TensorFlow, by the operations of a signature."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

# The plugin for processors computes in these; it would narrow 64-bit numbers.
DTYPES = {types_pb2.DT_FLOAT: np.dtype(np.float32), types_pb2.DT_UINT8: np.dtype(np.uint8)}

_INTEGERS = {types_pb2.DT_INT8, types_pb2.DT_INT16, types_pb2.DT_INT32, types_pb2.DT_INT64}
# It computes in other types than these: integers of 8 and 16 bits stop at their limits instead of wrapping
# around, int64 has 32 bits, and float64 has the digits of float32.
_COMPUTED_IN_OTHERS = {
    *(types_pb2.DT_INT8, types_pb2.DT_UINT8, types_pb2.DT_INT16, types_pb2.DT_UINT16),
    *(types_pb2.DT_UINT32, types_pb2.DT_UINT64, types_pb2.DT_DOUBLE),
}
_PLACEHOLDERS = {"Placeholder", "PlaceholderWithDefault"}
# These only move values, of any type.
_MOVES = _PLACEHOLDERS | {
    *("ConcatV2", "Const", "EnsureShape", "ExpandDims", "Identity", "IdentityN", "Pack", "Reshape", "Shape"),
    *("Slice", "Split", "Squeeze", "StridedSlice", "Tile", "Transpose", "Unpack"),
}
_DIVISIONS = {"Div", "FloorDiv", "FloorMod", "Mod", "TruncateDiv", "TruncateMod"}
_GATHERS = {"Gather", "GatherNd", "GatherV2", "ResourceGather", "ResourceGatherNd"}
_CHECKS = ("Assert", "CheckNumerics", "MatrixInverse", "Segment", "UnsortedSegment")
_STATE = ("Assign", "ResourceScatter", "Scatter", "Stack", "TensorArray", "LookupTable", "HashTable")
_RANDOM = ("Multinomial", "Random")
_MISREAD = ("Unique",)  # OpenVINO 2026.4 answers the first value, and zeros for the others

Scope: TypeAlias = Mapping[str, node_def_pb2.NodeDef]


def reason_against(graph: graph_pb2.GraphDef, signature: meta_graph_pb2.SignatureDef) -> str:
    """Why a signature's answers could differ from TensorFlow's; empty if there is no reason."""
    for alias, info in itertools.chain(signature.inputs.items(), signature.outputs.items()):
        if info.dtype not in DTYPES:
            return f"{alias} is of type {types_pb2.DataType.Name(info.dtype)}"
    for alias, info in signature.inputs.items():
        if info.tensor_shape.unknown_rank or not info.HasField("tensor_shape"):
            return f"{alias} has no declared rank"
        # Beside an input of open size, it answers from memory that is not its own.
        if not info.tensor_shape.dim:
            return f"{alias} is a scalar"
        if alias in signature.outputs:
            return f"{alias} is the name of an input and of an output"
    if not signature.inputs:
        return "it has no inputs"
    for node, scope in _reachable(graph, [info.name for info in signature.outputs.values()]):
        if why := _about(node, scope):
            return f"it has an operation {node.op} {why}".rstrip()
    return ""


def _about(node: node_def_pb2.NodeDef, scope: Scope) -> str:
    """What about an operation OpenVINO answers otherwise, as words after its name; empty if nothing is."""
    if node.op.startswith(_CHECKS):
        return "that checks its input"
    if node.op.startswith(_STATE):
        return "that keeps a state"
    if node.op.startswith(_RANDOM):
        return "that draws random numbers"
    if node.op.startswith(_MISREAD):
        return "that OpenVINO computes wrongly"
    if node.op == "EnsureShape":  # that of an input has the shape of the signature, which every request has
        first = scope.get(_node_name(node.input[0]))
        return "" if first is not None and first.op in _PLACEHOLDERS else "of a tensor that is computed"
    second = _constant(scope, node.input[1]) if len(node.input) > 1 else None
    if node.op in _GATHERS and second is None:
        return "with indices that are computed"
    if node.op in _DIVISIONS and node.attr["T"].type in _INTEGERS and (second is None or not second.all()):
        return "of integers by a divisor that may be 0"
    if node.op in _MOVES:
        return ""
    types = [value.type for key, value in node.attr.items() if node.op != "Cast" or key == "DstT"]
    computed = _COMPUTED_IN_OTHERS.intersection(types)
    if (
        "T" in node.attr and node.attr["T"].type == types_pb2.DT_INT64
    ):  # int64 elsewhere are indices and sizes
        computed = {types_pb2.DT_INT64}
    return f"of type {types_pb2.DataType.Name(min(computed))}" if computed else ""


def _constant(scope: Scope, read: str) -> np.ndarray | None:
    """The value that is read from a node, if it is constant."""
    node = scope.get(_node_name(read))
    return tf.make_ndarray(node.attr["value"].tensor) if node is not None and node.op == "Const" else None


def _reachable(
    graph: graph_pb2.GraphDef, names: Sequence[str]
) -> Iterator[tuple[node_def_pb2.NodeDef, Scope]]:
    """The nodes that compute tensors, each with the nodes beside it by name; functions included."""
    functions = {one.signature.name: one for one in graph.library.function}
    scope = {node.name: node for node in graph.node}
    waiting, seen = [_node_name(name) for name in names], set()
    called: list[str] = []

    def calls(node: node_def_pb2.NodeDef) -> Iterator[str]:
        for attribute in node.attr.values():
            yield from (one.name for one in (attribute.func, *attribute.list.func) if one.name)

    while waiting:
        name = waiting.pop()
        if name not in seen and name in scope:
            seen.add(name)
            yield scope[name], scope
            waiting += [_node_name(one) for one in scope[name].input]
            called += calls(scope[name])
    done: set[str] = set()
    while called:
        name = called.pop()
        if name not in done and name in functions:
            done.add(name)
            inner = {node.name: node for node in functions[name].node_def}
            for node in inner.values():
                yield node, inner
                called += calls(node)


def _node_name(name: str) -> str:
    return name.removeprefix("^").partition(":")[0]
