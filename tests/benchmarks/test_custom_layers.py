"""The benchmark of exports: however a network is written, its export has the same operations."""

from collections import Counter

import numpy as np
import pytest
from tensorflow.core.protobuf import saved_model_pb2

import keras_bn
from benchmarks import custom_layers

NO_WORK = {"Const", "Identity", "NoOp", "Placeholder", "EnsureShape"}


def operations(model, folder):
    examples = np.random.default_rng(1).uniform(-1, 1, (2, 224, 224, 3)).astype("float32")
    path = keras_bn.export(custom_layers.with_statistics(model), folder, examples=examples)
    (graph,) = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs
    return Counter(node.op for node in graph.graph_def.node if node.op not in NO_WORK)


@pytest.fixture
def few_blocks(monkeypatch):
    monkeypatch.setattr(custom_layers, "BLOCKS", ((16, 1, 1), (24, 2, 6), (24, 1, 6)))


def test_the_operations_are_those_of_the_plain_graph(tmp_path, few_blocks):
    expected = operations(custom_layers.plain(), tmp_path / "plain")
    assert expected["Mul"] == 0  # all BN layers are folded
    assert operations(custom_layers.custom_layers(), tmp_path / "custom") == expected
    assert operations(custom_layers.subclassed(), tmp_path / "subclassed") == expected
