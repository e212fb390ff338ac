"""TensorFlow as an engine: a session that runs tensors by name, as tensorflow_model_server does.

Nothing is checked against the shapes a signature declares: what the client sends is fed, and the operations
of the graph have the last word (but for `_fragile_inputs`). `Session.run` would refuse such feeds, so the C
function under it is called; it is not part of TensorFlow's public API, and used in this file alone.
"""

import itertools
import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.client import pywrap_tf_session as c_api

from keras_bn_serving.local_server.engines.engine import Options
from keras_bn_serving.local_server.status import from_exception
from keras_bn_serving.wire.errors import DataLossError, InvalidArgumentError, NotFoundError, with_code
from keras_bn_serving.wire.messages import MESSAGES

# Operations whose kernels (oneDNN's, the default on x86) look up a dimension before they check that there is
# one, which aborts the process. Found by feeding the operations of convolutional and dense networks tensors
# of other ranks; these raise for wrong sizes of the right rank.
_ABORTING = frozenset(("Conv2D", "Conv2DBackpropFilter", "Conv3D", "DepthwiseConv2dNative", "MaxPool3D"))

_log = logging.getLogger(__name__)


class TensorFlow:
    """The session of the version in the folder `path`, of the graph whose whole set of tags is that of
    `options`."""

    def __init__(self, path: str, options: Options) -> None:
        if not any(os.path.isfile(os.path.join(path, f"saved_model.{kind}")) for kind in ("pb", "pbtxt")):
            what = "Specified file path does not appear to contain a SavedModel bundle"
            raise NotFoundError(f"{what} (should have a file called `saved_model.pb`): {path}")
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=_config(path, options.session))
        self._outputs: dict[str, object] = {}
        try:
            with self._session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, list(options.tags), path)
            self._session._extend_graph()  # make the runtime see all of the graph
        except Exception as error:
            self.close()
            # Python's loader has its own exceptions for what does not parse, and tags that are not there.
            if type(error) is OSError:
                raise DataLossError(f"Can't parse {path}/saved_model.pb as binary proto") from None
            if type(error) is RuntimeError:
                what = f"Could not find meta graph def matching supplied tags: {{ {' '.join(options.tags)} }}"
                raise NotFoundError(f"{what}. saved_model_cli shows what there is.") from None
            raise
        self.signatures = dict(meta_graph.signature_def)
        self._ranks = _fragile_inputs(meta_graph)

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """As Engine.run, of any shape but one that would abort the process: INVALID_ARGUMENT.

        Other errors are the runtime's.
        """
        self._check_ranks(feeds)
        if not fetches:
            raise InvalidArgumentError("Must specify at least one target to fetch or execute.")
        inputs = {self._output(name): array for name, array in feeds.items()}
        outputs = [self._output(name) for name in fetches]
        options = None
        if timeout_ms > 0:
            serialized = tf.compat.v1.RunOptions(timeout_in_ms=timeout_ms).SerializeToString()
            options = c_api.TF_NewBufferFromString(serialized)
        try:
            results = c_api.TF_SessionRun_wrapper(self._session._session, options, inputs, outputs, [], None)
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
        """As Engine.close."""
        self._session.close()

    def _check_ranks(self, feeds: Mapping[str, np.ndarray]) -> None:
        for name, array in feeds.items():
            alias, rank = self._ranks.get(name, ("", array.ndim))
            if array.ndim != rank:
                raise InvalidArgumentError(
                    f"Input {alias} must have rank {rank}, as its signature says, but has rank {array.ndim} "
                    f"(shape {list(array.shape)})"
                )

    def _output(self, name: str) -> object:
        if name not in self._outputs:
            try:
                tensor = self._session.graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
            except (KeyError, ValueError) as error:
                code = "OUT_OF_RANGE" if "exists but" in str(error) else "INVALID_ARGUMENT"
                raise with_code(code, str(error)) from None
            self._outputs[name] = tensor._as_tf_output()
        return self._outputs[name]


def _config(path: str, given: tf.compat.v1.ConfigProto | None) -> tf.compat.v1.ConfigProto:
    """The configuration of a session, in which a version may leave out TensorFlow's graph optimizer."""
    config = tf.compat.v1.ConfigProto()
    if given is not None:
        config.CopyFrom(given)
    file = os.path.join(path, "assets.extra", "saved_model_config.pb")
    if os.path.isfile(file):
        try:
            with open(file, "rb") as opened:
                overrides = MESSAGES["SavedModelConfig"].FromString(opened.read()).session_overrides
            config.graph_options.rewrite_options.disable_meta_optimizer = overrides.disable_meta_optimizer
        except (OSError, DecodeError) as error:
            _log.warning("%s is ignored: %s", file, error)
    return config


def _fragile_inputs(meta_graph: meta_graph_pb2.MetaGraphDef) -> dict[str, tuple[str, int]]:
    """The alias and the rank, by tensor name, of the inputs whose rank must be checked before a run: those of
    declared rank, if there is an operation in `_ABORTING`; else tensorflow_model_server answers any shape."""
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
