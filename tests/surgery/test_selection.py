"""Choosing layers by class, pattern, predicate, or several of these."""

from dataclasses import dataclass
from typing import Any

import keras
import pytest

import keras_bn
from keras_bn.errors import KerasBNError
from keras_bn.surgery.selection import matcher, select

L = keras.layers


@dataclass
class Found:
    layer: Any
    path: str


FOUND = [
    Found(L.BatchNormalization(name="bn1"), "bn1"),
    Found(L.BatchNormalization(name="bn1"), "block/bn1"),
    Found(keras_bn.BatchNormalization(name="bn2"), "block/bn2"),
    Found(keras_bn.GhostBatchNormalization(4, name="ghost"), "ghost"),
]


@pytest.mark.parametrize(
    ("layers", "paths"),
    [
        (None, {"bn1", "block/bn1", "block/bn2", "ghost"}),
        ("bn1", {"bn1", "block/bn1"}),
        ("block/*", {"block/bn1", "block/bn2"}),
        ("block/bn1", {"block/bn1"}),
        (keras_bn.BatchNormalization, {"block/bn2", "ghost"}),
        (lambda layer: layer.name.startswith("g"), {"ghost"}),
        (["ghost", L.BatchNormalization], {"bn1", "block/bn1", "ghost"}),
    ],
)
def test_what_is_chosen(layers, paths):
    assert select(FOUND, layers) == paths
    assert {each.path for each in FOUND if matcher(layers)(each)} == paths


@pytest.mark.parametrize("layers", ["BN1", lambda layer: False, [], L.Dense])
def test_nothing_chosen_lists_what_there_is(layers):
    with pytest.raises(KerasBNError, match="matches none of the layers: bn1, block/bn1"):
        select(FOUND, layers)


def test_what_chooses_nothing():
    with pytest.raises(KerasBNError, match="layers=3: give a layer class"):
        select(FOUND, 3)
