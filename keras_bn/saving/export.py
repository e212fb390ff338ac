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
    """Write `model` as `base_path/<version>/`, checked to answer in inference mode, and return that folder.

    The version holds a SavedModel whose `serving_default` signature runs the inference path alone. Its batch
    dimension is open unless the model fixes it. Inputs and outputs are named by the keys where the model
    takes
    or returns a dict, else by its input and output layers; what is not a letter, a digit or _ in an input's
    name becomes _. A subclassed model's inputs are named by the argument of its `call`, its outputs
    output_0 and
    so on.

    Every input passes a guard, so that a request of a wrong rank or size is answered INVALID_ARGUMENT;
    without
    one it can end the server.

    `keras.Model.export` writes every weight twice, as variables. Here each is written once, as a constant of
    the graph, which the runtime computes with ahead. Where the weights are more than 128 MiB the largest of
    them stay variables, since constants take several times their size in memory.

    The version is built in a hidden folder of `base_path`, loaded again as TensorFlow Serving loads it,
    checked as in `verify_inference_mode`, compared with `model`, and renamed in one step: a server that polls
    `base_path` sees a whole version or none. `assets.extra/keras_bn_export.json` in it tells what was
    measured, and what folding did to every layer.

    Args:
        model: a built Keras model of any kind; it is left as it is.
        base_path: the local folder of the model's versions, made if it is missing.
        version: an integer from 0 up that is not taken, or None for one more than the highest there is.
        fold: If True, absorb BN into its neighbours first (`keras_bn.fold`), and what follows a convolution
            inside custom layers in the graph, which changes outputs by rounding. Without it a retrofitted BN
            stays the identity it is, to the bit.
        precision: "float32", or "bfloat16" for convolutions and matrix products in 16 bits: sums, means and
            softmax stay float32, as do inputs and outputs, and weights are stored in 16 bits. On a processor
            without bfloat16 arithmetic (AVX-512 BF16 or AMX) it is slower than float32.
        tolerance: the largest change from the outputs of `model`, relative to their largest magnitude, beyond
            which no version appears; None for what rounding explains (1e-4 in float32), or 0.05 in bfloat16.
        examples: two or more inputs for the check, as an array or a dict of arrays by input name; made up
            when None, which fails for models that take strings or are particular about their integers. A
            subclassed model that was never called takes its shapes from them.
        warmup: inputs, in the form of `examples`, that the server is to run as one request before the version
            answers (`assets.extra/tf_serving_warmup_requests`); None for one example, the first of `examples`
            or zeros; False for no warm-up.
        batch_sizes: the allowed batch sizes of the server's batching configuration. There is a warm-up
        request
            of each, its rows those of `warmup` over and over. None for one request of those rows.
        image_bytes: adds the signature `serving_image`, with the input `image_bytes`: a batch of JPEG, PNG,
            GIF or BMP files. They are decoded, resized to the input's height and width (bilinear,
            antialiased, the aspect ratio not kept, EXIF orientation not read) and preprocessed: "raw" leaves
            0 to 255, "caffe", "tf" and "torch" are the modes of `keras.applications`, a function takes the
            float32 batch.
        fused: If True, let TensorFlow fuse the graph now instead of whenever it is loaded. The result loads
            faster, but has operations that only TensorFlow knows: OpenVINO, LiteRT and tf2onnx cannot read
            it. In float32 only.

    Raises:
        KerasBNError: the model is not built and there are no examples; a layer is stateful; the version is
        taken
            or no valid number; `base_path` is a file or cannot be written; the model has no single input of
            images; the check failed; the outputs changed by more than `tolerance`; or TensorFlow is not
            installed. No version appears.

    Warns:
        UserWarning: the check says little, as in `verify_inference_mode`; or BN layers could not be folded as
            layers.

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
