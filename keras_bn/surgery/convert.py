"""Replace one normalization by another, by default Keras's BN layers by ours."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import keras
import numpy as np

from keras_bn._keras import direct_layers, flatten_layers
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
    """Replace the normalization layers, by default every `keras.layers.BatchNormalization` by ours.

    The argument `to` selects the new layers:

    - `keras_bn.BatchNormalization`, or another of our layers. To pass arguments, give an instance, such as
      `GhostBatchNormalization(virtual_batch_size=32)`, or a `functools.partial`. Arguments that differ from
      their defaults are used, but axis, epsilon, center, scale, name and dtype are always those of the old
      layer. Our own layers are converted too, if they are of another class. The outputs at inference are
      preserved up to rounding.
    - `"keras"`: Our `BatchNormalization` becomes `keras.layers.BatchNormalization`. The outputs are preserved
      up to rounding. A layer that would train differently is left alone.
    - `"frozen"`: Our `BatchNormalization` with `frozen_statistics=True`. The outputs are preserved. Compare
      `keras_bn.freeze`, which also computes the layer together with the one before it.
    - `"group"`: `keras.layers.GroupNormalization` with 32 groups, or with the largest number that divides
      both 32 and the number of channels. Where the inputs are vectors, `LayerNormalization` is used instead.
      The two classes themselves or an instance can also be given. The outputs change, because each example
      is normalized by its own moments. With `data`, gamma and beta are chosen to preserve the mean and
      deviation of each channel over the data, so that training starts near the old loss. Without `data`,
      gamma and beta are the old ones.
    - A function that takes a layer and returns the new one, or None to leave the layer alone. A batch, group
      or layer normalization that is not built gets the weights of the old layer.

    A layer is replaced wherever the model holds it: in a graph, in attributes, lists and dictionaries of
    other layers, in wrappers, and in the cells of recurrent layers. All other layers keep their classes, and
    a subclassed model keeps its class as well. Names, weights, options and `trainable` flags are preserved.
    The outputs differ by rounding only: Keras multiplies by gamma * rsqrt(variance + epsilon), our layer by
    gamma / sqrt(variance + epsilon). Layers with `renorm=True` become `BatchRenormalization` if it trains in
    the same way. Two kinds of layers are left alone, and the report gives the reason: subclasses of Keras's
    layer, which may compute something else, and layers whose options have no counterpart or are out of
    range.

    Training continues as before: the model is compiled with the same configuration, and the optimizer keeps
    its step and its moments.

    Note: The new layers average the *biased* variance, as Keras 3 does. The paper (section 3.1), PyTorch and
    the default of `keras_bn.BatchNormalization` use the unbiased variance.

    Note: A layer that creates its normalization in its own code creates Keras's layer again when the model
    is loaded from a file. Where the weights fit, convert the loaded model once more. Where they do not, as
    with group normalization, the report has a note that says how to save and load them.

    Args:
        model: Any built model. It is not changed, unless `in_place` is True.
        to: The new layers, as listed above.
        in_place: If True, replace the layers in `model` itself and return it. On an error or Ctrl-C the
            model is restored exactly.
        unbiased_variance: If True, average the unbiased variance from now on. The two variances differ by a
            factor of m / (m - 1) for m values per channel, so this matters for small batches. An instance
            given as `to` has its own setting.
        data: Data for group and layer normalization, in any form that `Model.predict` accepts. It is run as a
            single batch in memory. A few hundred examples are enough.
        batch_size: Number of examples per batch of arrays, if `steps` is given.
        steps: Number of batches of the data to use. If None, all are used.

    Returns:
        The new model and the report. Each row tells what the conversion preserves. If the outputs are
        preserved, the difference of the row is the largest change of the layer's output on values that
        follow its statistics. If the moments are preserved, it is the largest change of a channel's mean or
        deviation over the data, in units of the largest deviation. If outputs are not preserved,
        `report.difference` is the largest change of an output of the model, on the data or on noise.

    Raises:
        KerasBNError: If the model is not built, has NaN or infinity in its weights, or has no batch
            normalization; if `to` is none of the above, lacks required arguments, or returns no layer; or if
            the data does not fit the model.

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
        notes = _do_not_load(model, [(path, layer, new_of.get(id(layer))) for path, layer in found])
        if uncalibrated and not in_place and difference is None:
            notes.append(
                "the model does not say what its inputs are; give data= to measure the change of its outputs"
            )
    return SurgeryResult(result, Report("convert", rows, difference, tuple(notes)))


def _do_not_load(model: keras.Model, found: list[tuple[str, Any, Any]]) -> list[str]:
    """A note on layers that a custom layer creates again when it is loaded, and whose weights do not fit."""
    custom = [each for each in flatten_layers(model) if type(each).__module__.partition(".")[0] != "keras"]
    inside = {id(layer) for each in custom for layer in direct_layers(each)}
    lost = [
        path
        for path, old, new in found
        if new is not None
        and id(old) in inside
        and [tuple(v.shape) for v in old.weights] != [tuple(v.shape) for v in new.weights]
    ]
    if not lost:
        return []
    return [
        f"{', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}: the class around them creates BN in its "
        "own code, whose weights are others, so a saved model does not load; save the weights "
        "(save_weights), and load them (load_weights) into the donor converted in the same way"
    ]


def _whole(model: keras.Model, data: Any, batch_size: int | None, steps: int | None) -> Any:
    """All of the data as one batch."""
    parts = [keras.tree.map_structure(np.asarray, batch) for batch in batches(model, data, batch_size, steps)]
    return keras.tree.map_structure(lambda *leaves: np.concatenate(leaves), *parts)


def _row(path: str, layer: Any, new: Any, left: dict[int, float]) -> Row:
    """The row of a converted layer: its new class, the quantity that is preserved, and the change of it."""
    kind, reason = type(layer).__name__, f"to {type(new).__name__}"
    if id(new) in left:
        reason += ", keeps the mean and deviation of each channel over the data"
        return Row(path, kind, "converted", reason, left[id(new)])
    if not is_batch_normalization(new):
        return Row(path, kind, "converted", f"{reason}, keeps no outputs, and no moments without data")
    if isinstance(new, BatchNormalization):
        reason += f", averaging the {'unbiased' if new.unbiased_variance else 'biased'} variance"
    return Row(path, kind, "converted", f"{reason}, keeps the outputs to rounding", change(layer, new))
