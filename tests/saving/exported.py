"""What tests of exported versions share: inputs, answers, and the operations after optimization."""

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from keras_bn.saving import grappler
from keras_bn.saving.session import servable


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def ask(path, inputs):
    with servable(path, "serving_default") as served:
        return served.run(inputs)


def optimized(path):
    """The operations of a version after TensorFlow's optimizer."""
    file = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    meta_graph = meta_graph_pb2.MetaGraphDef()
    meta_graph.CopyFrom(file.meta_graphs[0])
    return [node.op for node in grappler.fuse(meta_graph, ()).node]
