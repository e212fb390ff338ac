"""Networks, images and sessions for the benchmarks of exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.certify.families import efficientnet_v2
from keras_bn.profiling.session_process import load


def keras_hub_efficientnet() -> keras.Model:
    """EfficientNetV2-B0 of KerasHub, whose BN layers are inside layers of its own."""
    backbone = efficientnet_v2(
        stackwise_kernel_sizes=[3] * 6,
        stackwise_num_repeats=[1, 2, 2, 3, 5, 8],
        stackwise_input_filters=[32, 16, 32, 48, 96, 112],
        stackwise_output_filters=[16, 32, 48, 96, 112, 192],
        stackwise_expansion_ratios=[1, 4, 4, 4, 6, 6],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.0, 0.0, 0.25, 0.25, 0.25],
        stackwise_strides=[1, 2, 2, 2, 1, 2],
        stackwise_block_types=["fused"] * 3 + ["unfused"] * 3,
        include_stem_padding=False,
        input_shape=(224, 224, 3),
    )
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, keras.layers.Dense(1000, activation="softmax", name="classes")(x))


KERAS_HUB = "KerasHub EfficientNetV2"


def network(name: str) -> keras.Model:
    """A network of `keras.applications`, or `KERAS_HUB`, with the same random weights in every process."""
    keras.utils.set_random_seed(0)
    if name == KERAS_HUB:
        return with_statistics(keras_hub_efficientnet())
    return with_statistics(getattr(keras.applications, name)(weights=None, input_shape=(224, 224, 3)))


def with_statistics(model: keras.Model) -> keras.Model:
    """Random weights, which cost the same as trained ones, with population statistics that are not 0 and 1,
    and biases that are not 0, which TensorFlow would leave out."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith(("moving_mean", "bias")):
            variable.assign(random.normal(0, 0.1, variable.shape))
        elif variable.path.endswith("moving_variance"):
            variable.assign(random.uniform(0.5, 2, variable.shape))
    return model


def images(count: int, seed: int = 0) -> np.ndarray:
    """Noise of the shape of images."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, 224, 224, 3)).astype(np.float32)


def session(path: Path, threads: int) -> tuple[tf.compat.v1.Session, str, str]:
    """A session with a version, and the names of its input and its output."""
    opened, inputs, outputs = load(path, threads)
    (fed,), (fetched,) = inputs.values(), outputs.values()
    return opened, fed, fetched


def runs(path: Path, image: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """What runs `image` through a version in a session of its own."""
    opened, fed, fetched = session(path, threads)
    call = opened.make_callable(fetched, [fed])
    return lambda: call(image)
