"""Export of a Keras model as a version that TensorFlow Serving can load."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from keras_bn._tensorflow import require_tensorflow

if TYPE_CHECKING:
    import tensorflow as tf


def export(
    model: keras.Model,
    base_path: str | os.PathLike[str],
    version: int | None = None,
    fold: bool = True,
    *,
    examples: Any = None,
    warmup: Any = None,
    image_bytes: str | Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> Path:
    """Write `model` as `base_path/<version>/`, checked to answer in inference mode, and return that folder.

    The version holds a SavedModel whose `serving_default` signature runs the inference path alone, with a
    dynamic batch dimension. Inputs and outputs are named by the keys where the model takes or returns a dict,
    else by its input and output layers; what is not a letter, a digit or _ in an input's name becomes _.

    `keras.Model.export` writes every weight twice, as variables. Here each is written once, as a constant of
    the graph, which the runtime computes with ahead. Loading constants takes some 15 times their size in
    memory, so where the weights are more than 128 MiB the largest of them stay variables.

    The version is built in a hidden folder of `base_path`, loaded again as TensorFlow Serving loads it,
    checked as in `verify_inference_mode`, compared with `model`, and renamed in one step: a server that polls
    `base_path` sees a whole version or none. `assets.extra/keras_bn_export.json` in it tells what was
    measured, and what folding did to every layer.

    Args:
        model: a built Functional or Sequential model; it is left as it is.
        base_path: the local folder of the model's versions, made if it is missing.
        version: an integer from 0 up that is not taken, or None for one more than the highest there is.
        fold: absorb BN into its neighbours first (`keras_bn.fold`), which changes outputs by rounding.
            Without it a retrofitted BN stays the identity it is, to the bit.
        examples: two or more inputs for the check, as an array or a dict of arrays by input name; made up
            when None, which fails for models that take strings or are particular about their integers.
        warmup: inputs, in the form of `examples`, that the server is to run as one request before the version
            answers (`assets.extra/tf_serving_warmup_requests`); None for one example, the first of `examples`
            or zeros; False for no warm-up.
        image_bytes: adds the signature `serving_image`, with the input `image_bytes`: a batch of JPEG, PNG,
            GIF or BMP files. They are decoded, resized to the input's height and width (bilinear,
            antialiased, the aspect ratio not kept, EXIF orientation not read) and preprocessed: "raw" leaves
            0 to 255, "caffe", "tf" and "torch" are the modes of `keras.applications`, a function takes the
            float32 batch.

    Raises:
        KerasBNError: the model is subclassed or not built; the version is taken or no valid number;
            `base_path` is a file or cannot be written; the model has no single input of images; or the check
            failed. No version appears.

    Warns:
        UserWarning: the check says little, as in `verify_inference_mode`.

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    >>> with tempfile.TemporaryDirectory() as base_path:
    ...     [keras_bn.export(model, base_path).name for _ in range(2)]
    ['1', '2']
    """
    require_tensorflow("keras_bn.export")
    from keras_bn.saving.write_version import write_version

    return write_version(
        model, base_path, version, fold, examples=examples, warmup=warmup, image_bytes=image_bytes
    )
