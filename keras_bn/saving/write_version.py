"""The steps of an export, from the arguments to the published version."""

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
from keras_bn.saving.batch_independence import Checked, check, largest_change
from keras_bn.saving.examples import Tensors, generated, given
from keras_bn.saving.saved_model import IMAGE_BYTES, SERVING_DEFAULT, SERVING_IMAGE
from keras_bn.saving.saved_model import write as write_saved_model
from keras_bn.saving.session import servable
from keras_bn.saving.signatures import Signature, predict_signature
from keras_bn.saving.versions import check_target, publish
from keras_bn.surgery.fold import fold as fold_model

EXTRA = "assets.extra"  # what TensorFlow Serving reads beside the SavedModel
RECORD = "keras_bn_export.json"


def write_version(
    model: keras.Model,
    base_path: str | os.PathLike[str],
    version: int | None,
    fold: bool,
    *,
    examples: Any,
    warmup: Any,
    image_bytes: str | Callable[[tf.Tensor], tf.Tensor] | None,
) -> Path:
    """See `keras_bn.export`, whose arguments these are."""
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
            warm_up.write(folder / EXTRA, requests.items())
        what = f"model {model.name!r}"
        with servable(folder, SERVING_DEFAULT) as served:
            checked = check(served, batches, what, made_up=examples is None)
        checks = [checked.check]
        if decoder is not None:
            files = {IMAGE_BYTES: images.made_up(decoder)}
            what_decodes = f"signature {SERVING_IMAGE!r} of {what}"
            with servable(folder, SERVING_IMAGE) as served:
                # Noise may be all one class; the model behind has been seen to tell its inputs apart.
                checks.append(check(served, [files], what_decodes, warn=False).check)
        record = {
            "made_with": {name: installed(name) for name in ("keras-bn", "keras", "tensorflow")},
            "checks": [asdict(each) for each in checks],
            "difference": _difference(signature, checked, what),
            "fold": folded and folded.report.to_dict(),
        }
        (folder / EXTRA / RECORD).write_text(json.dumps(record, indent=2))

    return publish(base_path, version, write)


def _warm_up(signature: Signature, examples: Any, warmup: Any, batch: Tensors) -> Tensors:
    if warmup is not None and warmup is not False:
        return given(signature.inputs, warmup)
    first = {name: values[:1] for name, values in batch.items()}
    return first if examples is not None else {name: np.zeros_like(values) for name, values in first.items()}


def _difference(signature: Signature, checked: Checked, what: str) -> float:
    """The largest change of an output from the Keras model to the SavedModel, relative to its magnitude."""
    outputs = signature.call(*(tf.convert_to_tensor(checked.inputs[name]) for name in signature.inputs))
    expected = {name: output.numpy() for name, output in zip(signature.outputs, outputs, strict=True)}
    difference = largest_change(checked.outputs, expected)
    if difference > checked.check.tolerance:
        raise KerasBNError(
            f"{what} answers otherwise once exported, by {difference:.2g} of its largest output; try "
            "fold=False, and report it if that does not help."
        )
    return difference
