"""Export of a Keras model as a version that TensorFlow Serving can load."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
    precision: str = "float32",
    tolerance: float | None = None,
    examples: Any = None,
    warmup: Any = None,
    batch_sizes: Sequence[int] | None = None,
    image_bytes: str | Callable[[tf.Tensor], tf.Tensor] | None = None,
    fused: bool = False,
    reference: Any = None,
) -> Path:
    """Write `model` to `base_path/<version>/`, check that it runs in inference mode, and return that folder.

    The version holds a SavedModel whose `serving_default` signature runs the inference path only. Its batch
    size is not fixed unless the model fixes it. Inputs and outputs are named by the keys if the model takes
    or returns a dict, and otherwise by its input and output layers. In the name of an input, other characters
    than letters, digits and _ become _. The inputs of a subclassed model are named by the argument of its
    `call`, and its outputs output_0, output_1 and so on.

    Every input has a guard, which answers a request of a wrong rank or size with INVALID_ARGUMENT. Without
    it, such a request can end the server.

    `keras.Model.export` writes every weight twice, as variables. Here, each weight is written once, as a
    constant of the graph, so that the runtime can compute with it at load. Weights of matrix products beyond
    1 MiB, and others beyond 72 MiB, are variables, the largest ones first. Constants take several times their
    size in memory.

    The version is built in a hidden folder of `base_path`, loaded again as TensorFlow Serving loads it,
    checked as in `verify_inference_mode`, compared with `model`, and renamed in one step. A server that polls
    `base_path` sees either a complete version or none. The file `assets.extra/keras_bn_export.json` in the
    version records the measurements, and how each layer was folded.

    Args:
        model: A built Keras model of any kind. It is not changed.
        base_path: Local folder of the model's versions. It is created if it is missing.
        version: A free version number from 0 up. If None, one more than the highest existing version.
        fold: If True, fold BN into its neighbors first (`keras_bn.fold`), and fold multiplications and
            additions after a convolution in the graph of custom layers. This changes outputs by rounding. If
            False, a retrofitted BN layer remains the exact identity.
        precision: "float32", or "bfloat16" for convolutions and matrix products in 16 bits. Sums, means,
            softmax, inputs and outputs remain float32, and weights are stored in 16 bits. On a processor
            without bfloat16 arithmetic (AVX-512 BF16 or AMX), bfloat16 is slower than float32.
        tolerance: Largest allowed change from the outputs of `model`, relative to their largest magnitude. On
            a larger change, no version is written. If None, the effect of rounding: 1e-4 in float32, or ten
            times the change that the last bits of the weights make, up to 1e-2; and 0.05 in bfloat16.
        examples: Two or more inputs for the check, as an array, a dict of arrays by input name, a list of
            arrays in the order of the inputs, or in the structure in which the model takes them. If None,
            they are generated, which fails for models that take strings or only certain integers. A
            subclassed model that was never called takes its shapes from them.
        warmup: Inputs, in the form of `examples`, that the server runs as one request before the version is
            available (`assets.extra/tf_serving_warmup_requests`). If None, one example, which is the first of
            `examples` or zeros. If False, there is no warm-up.
        batch_sizes: The allowed batch sizes of the server's batching configuration. There is one warm-up
            request of each size, which repeats the rows of `warmup`. If None, there is one request of those
            rows.
        image_bytes: If given, add the signature `serving_image`, with the input `image_bytes`: a batch of
            JPEG, PNG, GIF or BMP files. They are decoded, resized to the input's height and width (bilinear
            and antialiased, without keeping the aspect ratio or reading the EXIF orientation) and
            preprocessed. "raw" keeps values of 0 to 255. "caffe", "tf" and "torch" are the modes of
            `keras.applications`. A function takes the float32 batch.
        fused: If True, let TensorFlow fuse operations of the graph at export instead of at each load. The
            result loads faster and takes less memory, but only TensorFlow with oneDNN, which is the default
            on x86 processors, can load it. OpenVINO, LiteRT and tf2onnx cannot.

    Raises:
        KerasBNError: If the model is not built and there are no examples; if a layer is stateful; if the
            version exists or is not a valid number; if `base_path` is a file or cannot be written; with
            `image_bytes`, if the model has no single input of images; if the check failed; if the outputs
            changed by more than `tolerance`; or if TensorFlow is not installed. In all cases no version is
            written.

    Warns:
        UserWarning: If the check says little, as in `verify_inference_mode`, or if BN layers could not be
            folded as layers.

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    >>> with tempfile.TemporaryDirectory() as base_path:
    ...     [keras_bn.export(model, base_path).name for _ in range(2)]
    ['1', '2']
    """
    require_tensorflow("keras_bn.export")
    from keras_bn.saving.write_version import write_version

    return write_version(
        model,
        base_path,
        version,
        fold,
        precision=precision,
        tolerance=tolerance,
        examples=examples,
        warmup=warmup,
        batch_sizes=batch_sizes,
        image_bytes=image_bytes,
        fused=fused,
        reference=reference,
    )
