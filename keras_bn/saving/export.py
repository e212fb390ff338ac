"""Export of a Keras model as a version that TensorFlow Serving can load."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bn.errors import KerasBNError
from keras_bn.saving import images, warm_up
from keras_bn.saving.examples import Tensors, generated, given
from keras_bn.saving.proof import Proven, largest_change, prove
from keras_bn.saving.saved_model import IMAGE_BYTES, SERVING_DEFAULT, SERVING_IMAGE
from keras_bn.saving.saved_model import write as write_saved_model
from keras_bn.saving.session import servable
from keras_bn.saving.signatures import Signature, predict_signature
from keras_bn.saving.versions import check_target, publish
from keras_bn.surgery.fold import fold as fold_model

EXTRA = "assets.extra"  # what TensorFlow Serving reads beside the SavedModel
RECORD = "keras_bn_export.json"


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
    """Write `model` as `base_path/<version>/`, proven to answer in inference mode, and return that folder.

    The version holds a SavedModel whose `serving_default` signature runs the inference path alone, with a
    dynamic batch dimension. Inputs and outputs are named by the keys where the model takes or returns a dict,
    else by its input and output layers; what is not a letter, a digit or _ in an input's name becomes _.

    `keras.Model.export` writes every weight twice, as variables. Here each is written once, as a constant of
    the graph, which the runtime computes with ahead. Loading constants takes some 15 times their size in
    memory, so where the weights are more than 128 MiB the largest of them stay variables.

    The version is built in a hidden folder of `base_path`, loaded again as TensorFlow Serving loads it,
    proven as in `verify_inference_mode`, compared with `model`, and renamed in one step: a server that polls
    `base_path` sees a whole version or none. `assets.extra/keras_bn_export.json` in it tells what was
    measured, and what folding did to every layer.

    Args:
        model: a built Functional or Sequential model; it is left as it is.
        base_path: the local folder of the model's versions, made if it is missing.
        version: an integer from 0 up that is not taken, or None for one more than the highest there is.
        fold: absorb BN into its neighbours first (`keras_bn.fold`), which changes outputs by rounding.
            Without it a retrofitted BN stays the identity it is, to the bit.
        examples: two or more inputs for the proof, as an array or a dict of arrays by input name; made up
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
            `base_path` is a file or cannot be written; the model has no single input of images; or the proof
            failed. No version appears.

    Warns:
        UserWarning: the proof says little, as in `verify_inference_mode`.

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    >>> with tempfile.TemporaryDirectory() as base_path:
    ...     [keras_bn.export(model, base_path).name for _ in range(2)]
    ['1', '2']
    """
    check_target(base_path, version)
    signature = predict_signature(model)
    decoder = None if image_bytes is None else images.decoder(signature.inputs, image_bytes)
    batches = list(generated(signature.inputs)) if examples is None else [given(signature.inputs, examples)]
    requests = {SERVING_DEFAULT: _warm_up(signature, examples, warmup, batches[0])}
    if decoder is not None:
        requests[SERVING_IMAGE] = {IMAGE_BYTES: images.made_up(decoder, count=1)}
    folded = fold_model(model) if fold else None
    exported = folded.model if folded else model

    def write(folder: Path) -> None:
        write_saved_model(exported, predict_signature(exported), folder, decoder)
        (folder / EXTRA).mkdir()
        if warmup is not False:
            warm_up.write(folder / EXTRA, requests)
        what = f"model {model.name!r}"
        with servable(folder, SERVING_DEFAULT) as served:
            proven = prove(served, batches, what, made_up=examples is None)
        proofs = [proven.proof]
        if decoder is not None:
            files = {IMAGE_BYTES: images.made_up(decoder)}
            what_decodes = f"signature {SERVING_IMAGE!r} of {what}"
            with servable(folder, SERVING_IMAGE) as served:
                # Noise may be all one class; the model behind has been seen to tell its inputs apart.
                proofs.append(prove(served, [files], what_decodes, warn=False).proof)
        record = {
            "made_with": {name: installed(name) for name in ("keras-bn", "keras", "tensorflow")},
            "proofs": [asdict(proof) for proof in proofs],
            "difference": _difference(signature, proven, what),
            "fold": folded and folded.report.to_dict(),
        }
        (folder / EXTRA / RECORD).write_text(json.dumps(record, indent=2))

    return publish(base_path, version, write)


def _warm_up(signature: Signature, examples: Any, warmup: Any, batch: Tensors) -> Tensors:
    if warmup is not None and warmup is not False:
        return given(signature.inputs, warmup)
    first = {name: values[:1] for name, values in batch.items()}
    return first if examples is not None else {name: np.zeros_like(values) for name, values in first.items()}


def _difference(signature: Signature, proven: Proven, what: str) -> float:
    """The largest change of an output from the Keras model to the SavedModel, relative to its magnitude."""
    outputs = signature.call(*(tf.convert_to_tensor(proven.inputs[name]) for name in signature.inputs))
    expected = {name: output.numpy() for name, output in zip(signature.outputs, outputs, strict=True)}
    difference = largest_change(proven.outputs, expected)
    if difference > proven.proof.tolerance:
        raise KerasBNError(
            f"{what} answers otherwise once exported, by {difference:.2g} of its largest output; try "
            "fold=False, and report it if that does not help."
        )
    return difference
