"""One small member of every family of keras.applications with BN, built once for all tests of a process."""

import functools

import keras
import numpy as np

from keras_bn.surgery.normalizations import is_batch_normalization

FAMILIES = (
    *("DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2", "InceptionV3", "MobileNet"),
    *("MobileNetV2", "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "Xception"),
)
# Scales whose squares average to one, so that the signal neither dies nor explodes in a deep network.
RANGES = {
    "gamma": (0.7, 1.25),
    "beta": (-0.3, 0.3),
    "moving_mean": (-0.3, 0.3),
    "moving_variance": (0.5, 1.5),
}


@functools.cache
def network(name):
    """The network with random weights, no two channels of a BN layer alike. It is shared: leave it alone."""
    size = input_size(name)
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(size, size, 3), classes=5, classifier_activation=None)
    random = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if is_batch_normalization(layer):
            for weight in layer.weights:
                sign = random.choice([-1, 1], weight.shape) if weight.name == "gamma" else 1
                weight.assign(random.uniform(*RANGES[weight.name], weight.shape) * sign)
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(random.uniform(-0.3, 0.3, layer.bias.shape))
    return model


def input_size(name):
    """The height and width of the inputs: the least that the family takes, or near it."""
    return 75 if name in ("InceptionV3", "InceptionResNetV2", "Xception") else 32
