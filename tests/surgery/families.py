"""The small models of KerasHub that the certificate has too."""

import functools

import keras
import pytest

from benchmarks.certify.families import (
    cspnet,
    d_fine,
    deeplab_v3,
    densenet,
    efficientnet_edge,
    efficientnet_v2,
    hgnet_v2,
    images_for,
    inputs_for,
    mobilenet,
    mobilenet_v5,
    resnet,
    retinanet,
    scramble,
    segformer,
    xception,
)

FAMILIES = (
    *(resnet, mobilenet, mobilenet_v5, efficientnet_edge, efficientnet_v2, hgnet_v2, retinanet),
    *(deeplab_v3, segformer, d_fine, densenet, cspnet, xception),
)


def on_this_backend():
    """The families, marked as slow on the backends that take minutes for all of them, but for three kinds."""
    few = FAMILIES if keras.backend.backend() == "tensorflow" else (resnet, mobilenet, segformer)
    return [each if each in few else pytest.param(each, marks=pytest.mark.slow) for each in FAMILIES]


@functools.cache
def network(family):
    """A model of the family, no two channels of a BN layer alike. It is built once: leave it alone."""
    return scramble(family())


__all__ = [
    "FAMILIES",
    "images_for",
    "inputs_for",
    "network",
    "on_this_backend",
    "scramble",
    *(family.__name__ for family in FAMILIES),
]
