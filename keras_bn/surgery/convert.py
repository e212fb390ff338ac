"""Keras's batch normalization layers replaced by ours."""

from __future__ import annotations

from typing import Any

import keras

from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.surgery._checks import check_weights
from keras_bn.surgery._conversions import change, is_keras, ours, weights_for
from keras_bn.surgery._copying import Copies
from keras_bn.surgery.graph import Call, losses, rewrite
from keras_bn.surgery.normalizations import batch_normalizations
from keras_bn.surgery.report import Report, Row, SurgeryResult


def convert(model: keras.Model, *, unbiased_variance: bool = False) -> SurgeryResult:
    """Make every `keras.layers.BatchNormalization` a `keras_bn.BatchNormalization`.

    Names, weights, options and `trainable` flags stay, and so do the outputs but for rounding: Keras
    multiplies by gamma * rsqrt(variance + epsilon), ours by gamma / sqrt(variance + epsilon). Layers in
    nested models and in wrappers such as `TimeDistributed` are converted too, and those with `renorm=True`
    become `BatchRenormalization` where that trains alike. Left alone, with the reason in the report, are
    subclasses of Keras's layer, which may compute something else, layers that a composite layer makes in its
    own code, and those with options that have no counterpart or are out of range.

    Training goes on as before as well: the new layers keep the *biased* variance that Keras 3 averages, not
    the unbiased one of the paper (section 3.1), PyTorch and the default of `keras_bn.BatchNormalization`.

    Args:
        model: Functional or Sequential, also with such models nested in it. It is not changed.
        unbiased_variance: average the unbiased variance from now on. Small batches, where the two differ by
            m/(m-1) for m values per channel, then train towards statistics that fit inference better.

    Returns:
        The new model and the report; the difference of a row is the largest change of that layer's output on
        values distributed as its statistics say.

    Raises:
        KerasBNError: the model is subclassed or not built, has NaN or infinity in its weights, or no batch
            normalization.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn")])
    >>> result = convert(model)
    >>> type(result.model.get_layer("bn")) is BatchNormalization
    True
    """
    normalizations = batch_normalizations(model)
    check_weights(model)
    conversion = _Conversion(unbiased_variance)
    result = rewrite(model, conversion.edit)
    for old, new in conversion.pairs.values():
        new.set_weights(weights_for(new, old))
    rows = tuple(conversion.row(call) for call in normalizations)
    return SurgeryResult(result, Report("convert", rows, notes=losses(model, result)))


class _Conversion:
    """The edits of one conversion.

    Attributes:
        pairs: the layers converted, by the identity of the old one.
    """

    def __init__(self, unbiased_variance: bool) -> None:
        self.pairs: dict[int, tuple[Any, Any]] = {}
        self._unbiased_variance = unbiased_variance
        self._reasons: dict[int, str] = {}

    def edit(self, call: Call, copy: Copies) -> list[Any] | None:
        """What to call instead, for `rewrite`."""
        inner = getattr(call.layer, "layer", None)
        if isinstance(call.layer, keras.layers.Wrapper) and is_keras(inner):
            return self._rewrapped(call.layer, inner, copy)
        if not is_keras(call.layer):
            return None
        converted = self._converted(call.layer)
        return None if converted is None else [converted]

    def row(self, call: Call) -> Row:
        """What became of one batch normalization layer."""
        layer, kind = call.layer, type(call.layer).__name__
        if id(layer) in self.pairs:
            new = self.pairs[id(layer)][1]
            convention = "unbiased" if new.unbiased_variance else "biased"
            reason = f"to {type(new).__name__}, averaging the {convention} variance"
            return Row(call.path, kind, "converted", reason, change(layer, new))
        if isinstance(layer, BatchNormalization):
            return Row(call.path, kind, "left alone", "is keras_bn's already")
        reason = self._reasons.get(id(layer)) or (
            "is made by the code of the layer it is in"
            if is_keras(layer)
            else f"{kind} is a subclass of Keras's layer and may compute something else"
        )
        return Row(call.path, kind, "left alone", reason)

    def _converted(self, layer: Any) -> Any:
        """Our layer for one of Keras's, made once; None if there is none."""
        if id(layer) not in self.pairs and id(layer) not in self._reasons:
            try:
                self.pairs[id(layer)] = layer, ours(layer, self._unbiased_variance)
            except KerasBNError as error:
                self._reasons[id(layer)] = str(error)
        return self.pairs[id(layer)][1] if id(layer) in self.pairs else None

    def _rewrapped(self, wrapper: Any, inner: Any, copy: Copies) -> list[Any] | None:
        if self._converted(inner) is None:
            return None
        new = self._converted(inner)
        made = copy(wrapper, weights=wrapper.get_weights(), layer=keras.saving.serialize_keras_object(new))
        self.pairs[id(inner)] = inner, made.layer
        return [made]
