"""The steps of an export, from the arguments to the published version."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version as installed
from numbers import Real
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bn.errors import CheckFailedError, KerasBNError
from keras_bn.saving import images, warm_up
from keras_bn.saving import reference as statistics
from keras_bn.saving.batch_independence import check
from keras_bn.saving.examples import Tensors, batch_size, generated, given
from keras_bn.saving.faithfulness import compare
from keras_bn.saving.record import EXTRA, write_record
from keras_bn.saving.saved_model import IMAGE_BYTES, SERVING_DEFAULT, SERVING_IMAGE, Options
from keras_bn.saving.saved_model import write as write_saved_model
from keras_bn.saving.session import servable
from keras_bn.saving.signatures import Signature, predict_signature
from keras_bn.saving.versions import check_target, publish
from keras_bn.surgery._cloning import layers_in
from keras_bn.surgery.fold import fold as fold_model
from keras_bn.surgery.normalizations import is_batch_normalization


def write_version(
    model: keras.Model,
    base_path: str | os.PathLike[str],
    version: int | None,
    fold: bool,
    *,
    precision: str,
    tolerance: float | None,
    examples: Any,
    warmup: Any,
    batch_sizes: Sequence[int] | None,
    image_bytes: str | Callable[[tf.Tensor], tf.Tensor] | None,
    fused: bool,
    reference: Any = None,
) -> Path:
    """See `keras_bn.export`, which has the same arguments."""
    check_target(base_path, version)
    _check_arguments(precision, tolerance, batch_sizes, fused)
    signature = predict_signature(model, examples)
    named, warmup = signature.by_name(examples), signature.by_name(warmup)
    decoder = None if image_bytes is None else images.decoder(signature.inputs, image_bytes)
    batches = list(generated(signature.inputs)) if examples is None else [given(signature.inputs, named)]
    requests = _warm_up(signature, examples, warmup, batches[0], batch_sizes)
    if decoder is not None:
        requests.append((SERVING_IMAGE, {IMAGE_BYTES: images.made_up(decoder, count=1)}))
    exported, fold_record = _folded(model) if fold else (model, None)
    statistics_of_data = (
        {} if reference is None else statistics.of_model(model, [*signature.inputs], reference)
    )
    options = Options(fold=fold, bfloat16=precision == "bfloat16", fused=fused)

    def write(folder: Path) -> None:
        # A folded model may have other layers at its ends; requests keep the names of the model that was
        # given.
        written = (
            signature
            if exported is model
            else replace(signature, call=predict_signature(exported, examples).call)
        )
        folded_operations = write_saved_model(exported, written, folder, decoder, options)
        (folder / EXTRA).mkdir(exist_ok=True)
        if warmup is not False:
            warm_up.write(folder / EXTRA, requests)
        what = f"model {model.name!r}"
        with servable(folder, SERVING_DEFAULT) as served:
            with _unknown_steps_named(model):
                checked = check(served, batches, what, made_up=examples is None)
            allowed = tolerance or (checked.check.tolerance if precision == "float32" else 0.05)
            compared = checked.inputs if examples is None else batches[0]
            weights = model.variables if tolerance is None and precision == "float32" else ()
            fidelity = compare(signature, served, compared, what, float(allowed), weights)
        checks = [checked.check]
        if decoder is not None:
            files = {IMAGE_BYTES: images.made_up(decoder)}
            what_decodes = f"signature {SERVING_IMAGE!r} of {what}"
            with servable(folder, SERVING_IMAGE) as served:
                # Noise may be all one class; the model behind has been seen to tell its inputs apart.
                checks.append(check(served, [files], what_decodes, warn=False).check)
        if precision != "float32":
            print(f"{what} in {precision}: {fidelity}", file=sys.stderr)
        record = {
            "made_with": {name: installed(name) for name in ("keras-bn", "keras", "tensorflow")},
            "precision": precision,
            "fused": fused,
            "checks": [asdict(each) for each in checks],
            "fidelity": asdict(fidelity),
            "difference": fidelity.difference,
            "fold": fold_record and {**fold_record, "operations": folded_operations},
        }
        if reference is not None:
            record["reference"] = statistics.write(folder, statistics_of_data)
        write_record(folder, record)

    return publish(base_path, version, write)


def _check_arguments(precision: str, tolerance: Any, batch_sizes: Any, fused: Any) -> None:
    if precision not in ("float32", "bfloat16"):
        raise KerasBNError(f"precision must be 'float32' or 'bfloat16'; got {precision!r}.")
    if not isinstance(fused, bool):
        raise KerasBNError(f"fused must be True or False; got {fused!r}.")
    number = isinstance(tolerance, Real) and not isinstance(tolerance, bool)
    if tolerance is not None and not (number and 0 < tolerance < math.inf):
        raise KerasBNError(f"tolerance must be a finite number above 0, or None; got {tolerance!r}.")
    if batch_sizes is None:
        return
    sizes = list(batch_sizes) if isinstance(batch_sizes, Iterable) else []
    integers = all(isinstance(size, (int, np.integer)) and not isinstance(size, bool) for size in sizes)
    if not sizes or not integers or min(sizes) < 1:
        raise KerasBNError(
            f"batch_sizes must be a sequence of integers of at least 1, or None; got {batch_sizes!r}."
        )


def _folded(model: keras.Model) -> tuple[keras.Model, dict[str, Any]]:
    """The folded model and its entry for the record, or the model itself if its layers cannot be folded."""
    try:
        folded = fold_model(model)
    except KerasBNError as error:
        if any(is_batch_normalization(layer) for _, layer in layers_in(model)):
            warnings.warn(
                f"the layers of model {model.name!r} were not folded; what follows a convolution directly is "
                f"folded in the exported graph instead. Why: {error}",
                stacklevel=4,
            )
        return model, {"rows": [], "reason": str(error)}
    return folded.model, folded.report.to_dict()


@contextmanager
def _unknown_steps_named(model: keras.Model) -> Iterator[None]:
    """Name a cause in Keras itself: TimeDistributed, where the number of steps is open, mixes the rows."""
    try:
        yield
    except CheckFailedError as error:
        for path, layer in layers_in(model):
            if isinstance(layer, keras.layers.TimeDistributed) and None in tuple(layer.input.shape)[1:2]:
                raise CheckFailedError(
                    f"{error} Layer {path!r} is a TimeDistributed with an open number of steps, which "
                    "Keras computes wrongly in a graph: give the model's Input a fixed number of steps, or "
                    "leave TimeDistributed out around layers that work on the last axis anyway, such as "
                    "Dense."
                ) from error
        raise


def _warm_up(
    signature: Signature, examples: Any, warmup: Any, batch: Tensors, batch_sizes: Sequence[int] | None
) -> list[tuple[str, Tensors]]:
    """The Predict requests of `serving_default`: one, or one for each batch size."""
    if warmup is not None and warmup is not False:
        request = given(signature.inputs, warmup)
    else:
        size = batch_size(signature.inputs) or 1
        request = {name: values[:size] for name, values in batch.items()}
        if examples is None:
            request = {name: np.zeros_like(values) for name, values in request.items()}
    if batch_sizes is None:
        return [(SERVING_DEFAULT, request)]
    if (fixed := batch_size(signature.inputs)) is not None and set(batch_sizes) != {fixed}:
        raise KerasBNError(f"batch_sizes={list(batch_sizes)}, but the model takes batches of {fixed} alone.")
    return [
        (
            SERVING_DEFAULT,
            {name: np.resize(values, (size, *values.shape[1:])) for name, values in request.items()},
        )
        for size in batch_sizes
    ]
