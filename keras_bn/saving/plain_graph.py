"""Write a plain graph as a SavedModel: weights as constants or variables, the optimizer on or off."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from keras_bn.saving.constants import tensor_name
from keras_bn.saving.record import EXTRA

# The runtime copies constants: with its optimizer a graph takes some 12 times its size in memory, which the
# process keeps, and without it four times. Up to this size the operations that it fuses are worth that.
LARGEST_OPTIMIZED = 2**25
# The runtime packs filters once that are constants, and filters that are variables at every call. A variable
# takes its size in memory. With this many bytes of constants, ResNet50 takes 1.1 times the memory of Keras's
# export, and one call takes 4% longer than with constants alone, with which it is 1.25 times.
LARGEST_CONSTANTS = 72 * 2**20
LARGEST_FUSED = 2**20
# oneDNN multiplies by matrices as they are, so their products are as fast if they are variables.
LARGEST_PRODUCTS = 2**20
# A serialized tensorflow.serving.SavedModelConfig: session_overrides { disable_meta_optimizer: true }
_NO_OPTIMIZER = b"\x0a\x02\x18\x01"


def write_plain_graph(
    meta_graph: meta_graph_pb2.MetaGraphDef,
    folder: Path,
    fused: bool,
    variables: Mapping[str, NDArray[Any]],
) -> None:
    """Write `meta_graph` into `folder`.

    The largest weights of matrix products become variables, until the rest of them has at most
    `LARGEST_PRODUCTS` bytes. If more than `LARGEST_OPTIMIZED` bytes of other constants remain, the graph is
    loaded without TensorFlow's optimizer, and the largest ones become variables, too, until the rest has at
    most `LARGEST_CONSTANTS` bytes.

    Args:
        meta_graph: What to write.
        folder: An empty folder.
        fused: Whether the operations are fused already (`fuse`). Such a graph needs no optimizer, and packs
            filters once even if they are variables, so all weights are.
        variables: The values of placeholders that become variables.
    """
    graph = meta_graph.graph_def
    sizes = {node.name: node.attr["value"].tensor.ByteSize() for node in graph.node if node.op == "Const"}
    products = sizes.keys() & {tensor_name(node.input[1]) for node in graph.node if node.op == "MatMul"}
    others = sizes.keys() - products
    names = _largest(products, sizes, LARGEST_PRODUCTS)
    optimized = not fused and sum(sizes[name] for name in others) <= LARGEST_OPTIMIZED
    if not optimized:
        names |= _largest(others, sizes, LARGEST_FUSED if fused else LARGEST_CONSTANTS)
    values = dict(variables)
    for node in graph.node:
        if node.name in names:
            values[node.name] = tf.make_ndarray(node.attr["value"].tensor)
    if values:
        _write_with_variables(meta_graph, values, folder)
    else:
        saved_model = saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[meta_graph])
        (folder / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    if not optimized:
        (folder / EXTRA).mkdir()
        (folder / EXTRA / "saved_model_config.pb").write_bytes(_NO_OPTIMIZER)


def _largest(names: Set[str], sizes: Mapping[str, int], limit: int) -> set[str]:
    """The largest ones of `names`, so many that the rest has at most `limit` bytes."""
    beyond = set()
    for name in sorted(names, key=lambda name: sizes[name]):
        limit -= sizes[name]
        if limit < 0:
            beyond.add(name)
    return beyond


def _write_with_variables(
    meta_graph: meta_graph_pb2.MetaGraphDef, values: Mapping[str, NDArray[Any]], folder: Path
) -> None:
    """Write variables with `values` in place of the nodes with these names."""
    graph = meta_graph.graph_def
    rest = graph_pb2.GraphDef(versions=graph.versions, library=graph.library)
    rest.node.extend(node for node in graph.node if node.name not in values)
    scope = "weights"
    while any(node.name.startswith(f"{scope}/") for node in graph.node):
        scope += "_"
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        reads = {f"{name}:0": _variable(f"{scope}/{name}", value, session) for name, value in values.items()}
        tf.import_graph_def(rest, name="", input_map=reads)
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session, [tf.saved_model.SERVING], signature_def_map=dict(meta_graph.signature_def)
        )
        builder.save()


def _variable(name: str, value: NDArray[Any], session: tf.compat.v1.Session) -> tf.Tensor:
    """A variable with `value`, as what is read of it. The graph does not hold the value."""
    zeros = tf.zeros(value.shape, value.dtype, name=f"{name}/zeros")
    variable = tf.compat.v1.Variable(zeros, trainable=False, use_resource=True, name=name)
    session.run(variable.initializer, {zeros: value})
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=value.dtype, name=f"{name}/read")
