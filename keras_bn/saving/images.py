"""Image files as the input of a model: decoding, resizing and preprocessing inside the graph."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from keras_bn.errors import KerasBNError

MODES = ("raw", "caffe", "tf", "torch")

Preprocess = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Decoder:
    """Decoder from encoded images, a string tensor of shape (batch,), to the input `spec` of a model."""

    spec: tf.TensorSpec
    preprocess: Preprocess

    def __call__(self, image_bytes: tf.Tensor) -> tf.Tensor:
        """Decode JPEG, PNG, GIF (the first frame) or BMP, resize, preprocess."""
        height, width, channels = self.spec.shape[1:]

        def pixels(encoded: tf.Tensor) -> tf.Tensor:
            image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
            image.set_shape((None, None, channels))
            return tf.image.resize(image, (height, width), antialias=True)

        shape = tf.TensorSpec((height, width, channels), tf.float32)
        batch = self.preprocess(tf.map_fn(pixels, image_bytes, fn_output_signature=shape))
        if self.spec.dtype.is_integer:
            batch = tf.round(batch)
        return tf.ensure_shape(tf.cast(batch, self.spec.dtype), self.spec.shape)


def decoder(inputs: dict[str, tf.TensorSpec], preprocess: str | Preprocess) -> Decoder:
    """Return the decoder for a model's only input, whose shape must be (batch, height, width, channels)."""
    if not callable(preprocess) and preprocess not in MODES:
        raise KerasBNError(
            f"image_bytes must be one of {', '.join(MODES)}, or a function; got {preprocess!r}."
        )
    specs = list(inputs.values())
    shape = specs[0].shape
    if len(specs) > 1 or len(shape) != 4 or None in shape[1:] or shape[3] not in (1, 3, 4):
        shapes = {name: tuple(spec.shape) for name, spec in inputs.items()}
        raise KerasBNError(
            "image_bytes needs one input of shape (batch, height, width, 1, 3 or 4); the model takes "
            f"{shapes}."
        )
    return Decoder(specs[0], preprocess if callable(preprocess) else _named(preprocess))


def _named(mode: str) -> Preprocess:
    if mode == "raw":
        return tf.identity
    preprocess = keras.applications.imagenet_utils.preprocess_input
    return partial(preprocess, mode=mode, data_format="channels_last")


def made_up(decoder: Decoder, count: int = 4) -> np.ndarray:
    """Return PNG files of noise, each of other sizes and brightness, as an array of bytes."""
    random = np.random.default_rng(0)
    height, width, channels = decoder.spec.shape[1:]
    files = []
    for darker in range(count):
        pixels = random.integers(0, 256 >> darker, (height + darker, width, channels), np.uint8)
        files.append(tf.io.encode_png(pixels).numpy())
    return np.array(files, dtype=object)
