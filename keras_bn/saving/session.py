"""A SavedModel as TensorFlow Serving runs it: a session of its own, tensors by the names of a signature."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import message
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from keras_bn.errors import KerasBNError
from keras_bn.saving.examples import Tensors, batch_size
from keras_bn.saving.record import EXTRA

_FUSED = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}


@dataclass(frozen=True)
class Servable:
    """One signature of a loaded SavedModel.

    `inputs` maps names to dtype and shape. `batch_size` is the only batch size that the graph accepts, or
    None. `dtypes` are those of every value in the graph. `in_training` names the fused normalizations of the
    graph that are in training mode. `run` maps arrays by input name to arrays by output name.
    """

    signature: str
    inputs: dict[str, tf.TensorSpec]
    batch_size: int | None
    dtypes: frozenset[tf.DType]
    in_training: tuple[str, ...]
    run: Callable[[Mapping[str, np.ndarray]], Tensors]


@contextmanager
def servable(path: str | os.PathLike[str], signature: str) -> Iterator[Servable]:
    """Load a SavedModel into a new graph and session, and close it afterwards."""
    if not tf.saved_model.contains_saved_model(str(path)):
        raise KerasBNError(f"{path} holds no SavedModel; give the folder that has saved_model.pb in it.")
    # Closed, but not made the default: what the caller computes meanwhile stays eager.
    with closing(tf.compat.v1.Session(graph=tf.Graph(), config=session_config(path))) as session:
        try:
            with session.graph.as_default(), _without_deprecation():
                meta_graph = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(path))
        except (OSError, RuntimeError, tf.errors.OpError) as error:
            raise KerasBNError(f"the SavedModel in {path} cannot be loaded: {error}") from error
        if signature not in meta_graph.signature_def:
            names = ", ".join(sorted(meta_graph.signature_def))
            raise KerasBNError(f"{path} has no signature {signature!r}; it has {names}.")
        definition = meta_graph.signature_def[signature]
        feeds = {name: info.name for name, info in definition.inputs.items()}
        fetches = {name: info.name for name, info in definition.outputs.items()}

        def run(inputs: Mapping[str, np.ndarray]) -> Tensors:
            return session.run(fetches, {feeds[name]: value for name, value in inputs.items()})

        inputs, outputs = _specs(definition.inputs), _specs(definition.outputs)
        # Keras declares an open batch size even where a stateful layer fixes it; the output still tells.
        yield Servable(
            signature,
            inputs,
            batch_size(inputs) or batch_size(outputs),
            _dtypes(meta_graph.graph_def),
            _in_training(meta_graph.graph_def),
            run,
        )


def session_config(path: str | os.PathLike[str]) -> tf.compat.v1.ConfigProto:
    """The configuration with which TensorFlow Serving loads a version.

    It heeds `assets.extra/saved_model_config.pb`, which keras_bn writes to leave out TensorFlow's optimizer.
    """
    config = tf.compat.v1.ConfigProto()
    without_optimizer = (Path(path) / EXTRA / "saved_model_config.pb").exists()
    config.graph_options.rewrite_options.disable_meta_optimizer = without_optimizer
    return config


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """TensorFlow calls the loader deprecated that TensorFlow Serving uses; the newer one gives no session."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def signature_inputs(path: str | os.PathLike[str]) -> dict[str, tf.TensorSpec]:
    """The inputs of the default signature of a SavedModel, which is read but not loaded."""
    file = Path(path) / "saved_model.pb"
    try:
        meta_graph = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs[0]
        return _specs(meta_graph.signature_def[tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY].inputs)
    except (OSError, IndexError, message.DecodeError) as error:
        raise KerasBNError(f"{path} holds no SavedModel that can be read: {error}.") from error


def _specs(tensors: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, tf.TensorSpec]:
    return {
        name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype), name)
        for name, info in sorted(tensors.items())
    }


def _dtypes(graph: tf.compat.v1.GraphDef) -> frozenset[tf.DType]:
    return frozenset(
        tf.as_dtype(value.type) for node in _nodes(graph) for value in node.attr.values() if value.type
    )


def _in_training(graph: tf.compat.v1.GraphDef) -> tuple[str, ...]:
    nodes = (node for node in _nodes(graph) if node.op in _FUSED)
    # Training is the default, which a SavedModel may leave out.
    return tuple(
        sorted({node.name for node in nodes if "is_training" not in node.attr or node.attr["is_training"].b})
    )


def _nodes(graph: tf.compat.v1.GraphDef) -> list[Any]:
    """The nodes of a graph and of all functions in its library."""
    return [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
