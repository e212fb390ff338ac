"""Guards on the inputs of a SavedModel: a wrong shape is refused instead of ending the server."""

from __future__ import annotations

from tensorflow.core.framework import graph_pb2, tensor_shape_pb2
from tensorflow.core.protobuf import meta_graph_pb2

_PLACEHOLDERS = ("Placeholder", "PlaceholderWithDefault")


def guard(meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
    """Add an `EnsureShape` with the declared shape to every input of every signature.

    TensorFlow Serving does not check the shape of a tensor in a request. Some kernels (oneDNN's convolutions)
    end the process if its rank is wrong. `EnsureShape` answers INVALID_ARGUMENT instead. The placeholder
    before it must declare less than the signature, or else Grappler removes the check as redundant.
    """
    graph = meta_graph.graph_def
    nodes = {node.name: node for node in graph.node}
    consumers: dict[str, list[tuple[graph_pb2.NodeDef, int]]] = {}
    for node in graph.node:
        for position, read in enumerate(node.input):
            consumers.setdefault(read.removesuffix(":0"), []).append((node, position))
    shapes = {
        info.name.removesuffix(":0"): info.tensor_shape
        for signature in meta_graph.signature_def.values()
        for info in signature.inputs.values()
    }
    for name, shape in shapes.items():
        placeholder = nodes.get(name)
        if placeholder is None or placeholder.op not in _PLACEHOLDERS or shape.unknown_rank:
            continue
        check = graph.node.add(name=f"{name}/ensure_shape", op="EnsureShape", input=[name])
        check.attr["T"].type = placeholder.attr["dtype"].type
        check.attr["shape"].shape.CopyFrom(shape)
        for node, position in consumers.get(name, ()):
            node.input[position] = check.name
        placeholder.attr["shape"].shape.CopyFrom(_vaguer(shape))
        placeholder.attr.pop("_output_shapes", None)


def _vaguer(shape: tensor_shape_pb2.TensorShapeProto) -> tensor_shape_pb2.TensorShapeProto:
    """The same rank with unknown sizes, which every converter can read. No rank if no size is known."""
    if all(dim.size == -1 for dim in shape.dim):
        return tensor_shape_pb2.TensorShapeProto(unknown_rank=True)
    return tensor_shape_pb2.TensorShapeProto(
        dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=-1) for _ in shape.dim]
    )
