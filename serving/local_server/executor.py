"""One loaded SavedModel: a TensorFlow session that runs tensors by name, as tensorflow_model_server does.

Nothing is checked against the shapes a signature declares: what the client sends is fed, and the operations
of the graph have the last word. `Session.run` would refuse such feeds, so the C function under it is called;
it is not part of TensorFlow's public API, which is why it is used in this file alone. The exception is models
with operations that end the process where they should raise (see `_fragile_inputs`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.client import pywrap_tf_session as c_api

from serving.local_server.status import StatusError, from_exception, invalid_argument, not_found

SignatureDef: TypeAlias = meta_graph_pb2.SignatureDef

# Operations whose kernels (oneDNN's, the default on x86) look up a dimension by its place before they check
# that the tensor has it, which aborts the process instead of raising. Found by feeding the operations of
# convolutional and dense networks tensors of other ranks; these raise for wrong sizes of the right rank.
_ABORTING = frozenset(("Conv2D", "Conv2DBackpropFilter", "Conv3D", "DepthwiseConv2dNative", "MaxPool3D"))


class GraphSession:
    """A TensorFlow session that is fed and fetched by tensor name. Thread-safe; close it after the last
    run."""

    def __init__(self, config: tf.compat.v1.ConfigProto) -> None:
        self.session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        self._outputs: dict[str, object] = {}

    def extend(self) -> None:
        """Make the runtime see what was added to the graph since the last call."""
        self.session._extend_graph()

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """The values of the tensors named in `fetches`, given those in `feeds`.

        Args:
            feeds: an array for each tensor name (`x:0`), of the tensor's dtype and any shape.
            fetches: tensor names; at least one.
            timeout_ms: milliseconds after which the run is cancelled; 0: never.

        Raises:
            StatusError: with the code and the words of the TensorFlow runtime.
        """
        if not fetches:
            raise invalid_argument("Must specify at least one target to fetch or execute.")
        inputs = {self._output(name): array for name, array in feeds.items()}
        outputs = [self._output(name) for name in fetches]
        options = None
        if timeout_ms > 0:
            serialized = tf.compat.v1.RunOptions(timeout_in_ms=timeout_ms).SerializeToString()
            options = c_api.TF_NewBufferFromString(serialized)
        try:
            results = c_api.TF_SessionRun_wrapper(self.session._session, options, inputs, outputs, [], None)
        except tf.errors.OpError as error:
            raise from_exception(error) from None
        finally:
            if options is not None:
                c_api.TF_DeleteBuffer(options)
        # A scalar string comes back as bytes, which NumPy would make a fixed-width string.
        return [
            np.array(result, object) if isinstance(result, bytes) else np.asarray(result)
            for result in results
        ]

    def close(self) -> None:
        """Give the session's memory back."""
        self.session.close()

    def _output(self, name: str) -> object:
        if name not in self._outputs:
            self._outputs[name] = _find(self.session.graph, name)._as_tf_output()
        return self._outputs[name]


class Executor(GraphSession):
    """The session of one version of a model.

    Args:
        path: the version's folder.
        tags: the tag set of the graph to load; it must be the graph's whole set.
        config: thread counts and the like.

    Raises:
        StatusError: the folder holds no SavedModel that can be loaded.
    """

    def __init__(self, path: str, tags: Sequence[str], config: tf.compat.v1.ConfigProto) -> None:
        _check_folder(path)
        super().__init__(config)
        try:
            with self.session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self.session, list(tags), path)
            self.extend()
        except Exception as error:
            self.close()
            raise _load_error(error, path, tags) from error
        self.signatures: dict[str, SignatureDef] = dict(meta_graph.signature_def)
        self._ranks = _fragile_inputs(meta_graph)

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """As GraphSession.run.

        Raises:
            StatusError: also INVALID_ARGUMENT for a tensor of another rank than its signature's, if the
                model has operations that would abort the process.
        """
        for name, array in feeds.items():
            alias, rank = self._ranks.get(name, ("", array.ndim))
            if array.ndim != rank:
                raise invalid_argument(
                    f"Input {alias} must have rank {rank}, as its signature says, but has rank {array.ndim} "
                    f"(shape {list(array.shape)})"
                )
        return super().run(feeds, fetches, timeout_ms)


def _fragile_inputs(meta_graph: meta_graph_pb2.MetaGraphDef) -> dict[str, tuple[str, int]]:
    """The alias and the rank, by tensor name, of the inputs whose rank must be checked before a run.

    These are the inputs of declared rank of a model with an operation in `_ABORTING`, in its graph or in a
    function; of any other model none, since tensorflow_model_server answers requests of any shape.
    """
    graph = meta_graph.graph_def
    nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
    if not any(node.op in _ABORTING for node in nodes):
        return {}
    return {
        info.name: (alias, len(info.tensor_shape.dim))
        for signature in meta_graph.signature_def.values()
        for alias, info in signature.inputs.items()
        if info.HasField("tensor_shape") and not info.tensor_shape.unknown_rank
    }


def _find(graph: tf.Graph, name: str) -> tf.Tensor:
    operation, _, index = name.partition(":")
    try:
        outputs = graph.get_operation_by_name(operation).outputs
    except (KeyError, ValueError):
        raise invalid_argument(
            f"Tensor {name}, specified in either feed_devices or fetch_devices was not found in the Graph"
        ) from None
    if int(index or 0) >= len(outputs):
        kind = graph.get_operation_by_name(operation).type
        raise StatusError(
            "OUT_OF_RANGE",
            f"Node '{operation}' (type: '{kind}', num of outputs: {len(outputs)}) does not have output "
            f"{index or 0}",
        )
    return outputs[int(index or 0)]


def _check_folder(path: str) -> None:
    if not os.path.isdir(path):
        raise StatusError("FAILED_PRECONDITION", f"{path}; Not a directory")
    if any(os.path.isfile(os.path.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")):
        return
    if os.path.isfile(os.path.join(path, "export.meta")):
        raise StatusError("UNIMPLEMENTED", "Session Bundle is deprecated and removed.")
    raise not_found(
        "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
        f"`saved_model.pb`)\nSpecified file path: {path}"
    )


def _load_error(error: Exception, path: str, tags: Sequence[str]) -> StatusError:
    """What tensorflow_model_server says where TensorFlow's Python loader has words of its own."""
    if "Cannot parse file" in str(error):
        return StatusError("DATA_LOSS", f"Can't parse {path}/saved_model.pb as binary proto")
    if "could not be found in SavedModel" in str(error):
        return not_found(
            f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }}. To inspect "
            "available "
            "tag-sets in the SavedModel, please use the SavedModel CLI: `saved_model_cli`"
        )
    return from_exception(error)
