"""One normalization exchanged for another: Keras's BN layers for ours by default."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import keras
import numpy as np

from keras_bn.data import batches
from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.surgery._calibration import calibrate, output_moments
from keras_bn.surgery._checks import check_model, check_weights
from keras_bn.surgery._cloning import Clone, exchanged_in_place, layers_in
from keras_bn.surgery._conversions import change
from keras_bn.surgery._noise import change_on_noise
from keras_bn.surgery._targets import WITHIN_THE_EXAMPLE, Refused, built, fitting_arguments, maker
from keras_bn.surgery.normalizations import is_batch_normalization
from keras_bn.surgery.report import Report, Row, SurgeryResult


def convert(
    model: keras.Model,
    to: Any = BatchNormalization,
    in_place: bool = False,
    *,
    unbiased_variance: bool = False,
    data: Any = None,
    batch_size: int | None = None,
    steps: int | None = None,
) -> SurgeryResult:
    """Exchange the normalization: by default every `keras.layers.BatchNormalization` for ours.

    What the layers become is `to`:

    - `keras_bn.BatchNormalization`, or another of our layers with its arguments, as an instance
      (`GhostBatchNormalization(virtual_batch_size=32)`) or a `functools.partial`. Its arguments that are no
      defaults count; axis, epsilon, center, scale, name and dtype are always the old layer's. Layers of ours
      are converted too, if they are of another class. This keeps the outputs at inference, to rounding.
    - `"keras"`: our `BatchNormalization` becomes `keras.layers.BatchNormalization`. This keeps the outputs,
      to rounding, and a layer that would train otherwise is left alone.
    - `"frozen"`: ours with `frozen_statistics=True`. This keeps the outputs. `keras_bn.freeze` does more: it
      computes the layer together with the one before it.
    - `"group"`: `keras.layers.GroupNormalization` with 32 groups, or as many as divide both 32 and the
      channels, and `LayerNormalization` where the inputs are vectors. Also the two classes themselves, or an
      instance. This keeps no outputs: each example is normalized by its own moments. With `data`, gamma and
      beta are such that each channel's mean and deviation over the data are what they were, so that training
      starts near the old loss. Without, gamma and beta are the old ones.
    - a function that takes a layer and returns the new one, or None to leave it alone. A BN, group or layer
      normalization that is not built gets the weights of the old layer.

    A layer is exchanged wherever the model holds it: in a graph, in attributes, lists and dictionaries of
    other layers, in wrappers, in the cells of recurrent layers. All other layers keep their classes, and so
    does the model: a subclassed model stays one. Names, weights, options and `trainable` flags stay, and so
    do the outputs but for rounding: Keras multiplies by gamma * rsqrt(variance + epsilon), ours by gamma /
    sqrt(variance + epsilon). Layers with `renorm=True` become `BatchRenormalization` where that trains
    alike. Left alone, with the reason in the report, are subclasses of Keras's layer, which may compute
    something else, and layers with options that have no counterpart or are out of range.

    Training goes on as before: the model is compiled as it was, the optimizer has its step and its moments,
    and the new layers keep the *biased* variance that Keras 3 averages, not the unbiased one of the paper
    (section 3.1), PyTorch and the default of `keras_bn.BatchNormalization`.

    Note: a layer that makes its normalization in its own code makes Keras's again when the model is loaded
    from a file. The weights fit, so convert the loaded model once more.

    Args:
        model: any built model. It is not changed, unless `in_place` says so.
        to: what the layers become.
        in_place: If True, exchange the layers in `model` itself and return it. On an error or Ctrl-C it is
            what it was before, to the bit.
        unbiased_variance: If True, average the unbiased variance from now on. Small batches, where the two
            differ by m/(m-1) for m values per channel, then train towards statistics that fit inference
            better. An instance given as `to` says so itself.
        data: what `Model.predict` takes, for group and layer normalization. It is run as a single batch in
            memory: a few hundred examples are enough.
        batch_size: examples per batch of arrays, if `steps` is given.
        steps: how many batches of the data to use. None for all.

    Returns:
        The new model and the report. Each row says what the conversion keeps. Where that is the outputs, its
        difference is the largest change of the layer's output on values distributed as its statistics say;
        where it is the moments, the largest change of a channel's mean or deviation over the data, in units
        of the largest deviation. `report.difference` is the largest change of an output of the model, on the
        data or on noise, where outputs are not kept.

    Raises:
        KerasBNError: the model is not built, has NaN or infinity in its weights, or no batch normalization;
            `to` is none of the above, lacks arguments of its own, or returns no layer; the data does not fit.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn")])
    >>> result = convert(model)
    >>> type(result.model.get_layer("bn")) is BatchNormalization
    True
    >>> back = convert(result.model, to="keras").model
    >>> type(back.get_layer("bn")) is keras.layers.BatchNormalization
    True
    """
    check_model(model)
    make = maker(to, unbiased_variance)
    found = [(path, layer) for path, layer in layers_in(model) if is_batch_normalization(layer)]
    if not found:
        raise KerasBNError(f"Model {model.name!r} has no batch normalization layer.")
    check_weights(model)
    pairs: list[tuple[Any, Any]] = []
    reasons: dict[int, str] = {}
    for _, layer in found:
        try:
            pairs.append((layer, built(make(layer), layer)))
        except Refused as reason:
            reasons[id(layer)] = str(reason)
    uncalibrated = [(old, new) for old, new in pairs if not is_batch_normalization(new)]
    inputs = None if data is None else _whole(model, data, batch_size, steps)
    moments = {} if inputs is None else output_moments(model, [old for old, _ in uncalibrated], inputs)
    with exchanged_in_place(model, pairs) if in_place else nullcontext():
        result = model if in_place else Clone(model, pairs).model
        targets = [(new, old.axis, moments[id(old)]) for old, new in uncalibrated if id(old) in moments]
        with fitting_arguments([new for _, new in uncalibrated]):
            left = calibrate(result, [t for t in targets if isinstance(t[0], WITHIN_THE_EXAMPLE)], inputs)
    new_of = {id(layer): new for layer, new in pairs}
    rows = tuple(
        _row(path, layer, new_of[id(layer)], left)
        if id(layer) in new_of
        else Row(path, type(layer).__name__, "left alone", reasons[id(layer)])
        for path, layer in found
    )
    difference = change_on_noise(model, result, inputs) if uncalibrated and not in_place else None
    return SurgeryResult(result, Report("convert", rows, difference))


def _whole(model: keras.Model, data: Any, batch_size: int | None, steps: int | None) -> Any:
    """All of the data as one batch."""
    parts = [keras.tree.map_structure(np.asarray, batch) for batch in batches(model, data, batch_size, steps)]
    return keras.tree.map_structure(lambda *leaves: np.concatenate(leaves), *parts)


def _row(path: str, layer: Any, new: Any, left: dict[int, float]) -> Row:
    """What became of a layer, with what that keeps and how well."""
    kind, reason = type(layer).__name__, f"to {type(new).__name__}"
    if id(new) in left:
        reason += ", keeps the mean and deviation of each channel over the data"
        return Row(path, kind, "converted", reason, left[id(new)])
    if not is_batch_normalization(new):
        return Row(path, kind, "converted", f"{reason}, keeps no outputs, and no moments without data")
    if isinstance(new, BatchNormalization):
        reason += f", averaging the {'unbiased' if new.unbiased_variance else 'biased'} variance"
    return Row(path, kind, "converted", f"{reason}, keeps the outputs to rounding", change(layer, new))
