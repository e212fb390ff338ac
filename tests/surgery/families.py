"""The small models of KerasHub that the certificate has too."""

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

__all__ = ["FAMILIES", "images_for", "inputs_for", "scramble", *(family.__name__ for family in FAMILIES)]
