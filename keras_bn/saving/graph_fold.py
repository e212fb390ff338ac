"""Multiplications and additions by constants, folded into the convolution before them, in a traced graph.

`keras_bn.fold` works on layers. This module works on operations, for batch normalization inside custom layers
and subclassed models, which consists of such operations in the graph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from keras_bn.saving.constants import constant_node, prune, tensor_name

_CONVOLUTIONS = {"Conv2D": "NHWC", "Conv3D": "NDHWC", "DepthwiseConv2dNative": "NHWC"}
_ADDITIONS = {"Add", "AddV2", "BiasAdd", "Sub"}
_FLOATS = {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum, tf.float32.as_datatype_enum}


@dataclass
class _Map:
    """y = x * scale + offset per channel, in float64, of the operations that follow a convolution."""

    scale: np.ndarray
    offset: np.ndarray
    operations: list[str] = field(default_factory=list)  # what it takes the place of
    shaping: list[str] = field(default_factory=list)  # what lies between and stays, in order
    last: str = ""
    rank: int = 4

    def then(self, scale: np.ndarray | float, offset: np.ndarray | float, name: str) -> None:
        self.offset = self.offset * scale + offset
        self.scale = self.scale * scale
        self.operations.append(name)


def fold_graph(graph: graph_pb2.GraphDef, fetches: list[str]) -> tuple[graph_pb2.GraphDef, int]:
    """Fold the operations after convolutions and matrix products with constant filters. `graph` is edited.

    The products are computed in float64 and rounded once. Only operations of a single consumer are moved, and
    only constants with one value per channel.

    Args:
        graph: A graph whose constants are folded (`fold_constants`).
        fetches: Names of the output tensors.

    Returns:
        The graph without unused nodes, and the number of multiplications that were folded into filters.
    """
    folder = _Folder(graph, fetches)
    folded = sum(folder.fold(node) for node in list(graph.node) if _is_linear(node))
    return prune(graph, fetches), folded


def _is_linear(node: graph_pb2.NodeDef) -> bool:
    if node.op == "MatMul":
        return not node.attr["transpose_a"].b
    return node.op in _CONVOLUTIONS and _layout(node) in ("", _CONVOLUTIONS[node.op])


def _layout(node: graph_pb2.NodeDef) -> str:
    # Looking an attribute up adds it, and most operations have none of this name.
    return node.attr["data_format"].s.decode() if "data_format" in node.attr else ""


class _Folder:
    def __init__(self, graph: graph_pb2.GraphDef, fetches: list[str]) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.node}
        self.fetched = {tensor_name(fetch) for fetch in fetches}
        self.consumers: dict[str, list[graph_pb2.NodeDef]] = {}
        for node in graph.node:
            for read in node.input:
                self.consumers.setdefault(tensor_name(read), []).append(node)

    def fold(self, node: graph_pb2.NodeDef) -> int:
        """Fold the operations after one linear operation, and return the number of folded multiplications."""
        filters = self.constant(node.input[1])
        dtype = node.attr["T"].type
        if filters is None or dtype not in _FLOATS:
            return 0
        channels = _channels(node, filters)
        follows = self.follow(node, channels)
        kinds = Counter(
            "offset" if self.nodes[name].op in _ADDITIONS else "scale" for name in follows.operations
        )
        if not kinds["scale"] and kinds["offset"] < 2:
            return 0
        number = tf.as_dtype(dtype).as_numpy_dtype
        with np.errstate(over="ignore"):
            scaled = _scaled(node, filters, follows.scale).astype(number)
            offset = follows.offset.astype(number)
        if not (
            np.isfinite(scaled.astype(np.float64)).all() and np.isfinite(offset.astype(np.float64)).all()
        ):
            return 0
        name = node.name
        node.input[1] = constant_node(self.graph, f"{name}/folded_filter", scaled, dtype).name
        constant_node(self.graph, f"{name}/folded_offset", offset, dtype)
        tail = name
        for shaping in follows.shaping:  # what lay between these is gone
            self.nodes[shaping].input[0] = tail
            tail = shaping
        bias = self.graph.node.add(name=f"{name}/folded", op="BiasAdd", input=[tail, f"{name}/folded_offset"])
        bias.attr["T"].type = dtype
        for consumer in self.consumers.get(follows.last, ()):
            for position, read in enumerate(consumer.input):
                if tensor_name(read) == follows.last:
                    consumer.input[position] = bias.name
        self.consumers[bias.name] = self.consumers.get(follows.last, [])
        return kinds["scale"]

    def follow(self, node: graph_pb2.NodeDef, channels: int) -> _Map:
        """The map that the operations behind `node` make of its output."""
        rank = {"MatMul": 2, "Conv3D": 5}.get(node.op, 4)
        made = _Map(np.ones(channels), np.zeros(channels), last=node.name, rank=rank)
        while made.last not in self.fetched and len(self.consumers.get(made.last, ())) == 1:
            (consumer,) = self.consumers[made.last]
            if consumer.name in self.fetched or not self.take(consumer, made, channels):
                break
            made.last = consumer.name
        return made

    def take(self, node: graph_pb2.NodeDef, made: _Map, channels: int) -> bool:
        """Whether `node`, which reads the output of `made`, can become part of it."""
        if node.op in ("Identity", "StopGradient"):
            return True
        if node.op == "Squeeze" and _keeps_channels(node, made.rank):
            made.shaping.append(node.name)
            made.rank -= len(node.attr["squeeze_dims"].list.i)
            return True
        if node.op == "FusedBatchNormV3" and not node.attr["is_training"].b:
            return self.take_normalization(node, made)
        if node.op not in _ADDITIONS | {"Mul", "RealDiv"} or _layout(node) == "NCHW":
            return False
        first = tensor_name(node.input[0]) == made.last
        value = self.vector(node.input[1 if first else 0], channels, made.rank)
        if value is None or (node.op == "RealDiv" and not (first and np.all(value))):
            return False
        if node.op == "Mul":
            made.then(value, 0.0, node.name)
        elif node.op == "RealDiv":
            made.then(1 / value, 0.0, node.name)
        elif node.op == "Sub":
            made.then(1.0, -value, node.name) if first else made.then(-1.0, value, node.name)
        else:
            made.then(1.0, value, node.name)
        return True

    def take_normalization(self, node: graph_pb2.NodeDef, made: _Map) -> bool:
        gamma, beta, mean, variance = (self.constant(read) for read in list(node.input)[1:5])
        if gamma is None or beta is None or mean is None or variance is None:
            return False
        if _layout(node) == "NCHW":
            return False
        scale = gamma / np.sqrt(variance + node.attr["epsilon"].f)
        made.then(scale, beta - mean * scale, node.name)
        return True

    def constant(self, read: str) -> np.ndarray | None:
        node = self.nodes.get(tensor_name(read))
        if node is None or node.op != "Const":
            return None
        value = tf.make_ndarray(node.attr["value"].tensor)
        return np.asarray(value, np.float64)

    def vector(self, read: str, channels: int, rank: int) -> np.ndarray | float | None:
        """A constant with one value, or one for each channel along the last axis; None for anything else."""
        value = self.constant(read)
        if value is None or value.ndim > rank or not np.isfinite(value).all():
            return None
        if value.size == 1:
            return float(value.reshape(()))
        return value.reshape(-1) if value.shape[-1] == value.size == channels else None


def _channels(node: graph_pb2.NodeDef, filters: np.ndarray) -> int:
    if node.op == "DepthwiseConv2dNative":
        return filters.shape[-2] * filters.shape[-1]
    return filters.shape[-2] if node.op == "MatMul" and node.attr["transpose_b"].b else filters.shape[-1]


def _scaled(node: graph_pb2.NodeDef, filters: np.ndarray, scale: np.ndarray) -> np.ndarray:
    if node.op == "DepthwiseConv2dNative":
        return filters * scale.reshape(filters.shape[-2:])
    return filters * scale[:, None] if node.op == "MatMul" and node.attr["transpose_b"].b else filters * scale


def _keeps_channels(node: graph_pb2.NodeDef, rank: int) -> bool:
    """Whether a Squeeze leaves the first and the last axis of a tensor of that rank."""
    axes = node.attr["squeeze_dims"].list.i
    return bool(axes) and all(0 < axis % rank < rank - 1 for axis in axes)
