"""Keras's batch normalization layers replaced by ours."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import keras

from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.surgery._checks import check_model, check_weights
from keras_bn.surgery._cloning import Clone, exchanged_in_place, layers_in
from keras_bn.surgery._conversions import change, is_keras, ours, weights_for
from keras_bn.surgery.normalizations import is_batch_normalization
from keras_bn.surgery.report import Report, Row, SurgeryResult


def convert(
    model: keras.Model,
    to: type[BatchNormalization] = BatchNormalization,
    in_place: bool = False,
    *,
    unbiased_variance: bool = False,
) -> SurgeryResult:
    """Make every `keras.layers.BatchNormalization` a `keras_bn.BatchNormalization`.

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
        to: the class that the layers become, `BatchNormalization` or a subclass that needs no arguments of
            its own.
        in_place: If True, exchange the layers in `model` itself and return it. On an error or Ctrl-C it is
            what it was before, to the bit.
        unbiased_variance: If True, average the unbiased variance from now on. Small batches, where the two
            differ by m/(m-1) for m values per channel, then train towards statistics that fit inference
            better.

    Returns:
        The new model and the report; the difference of a row is the largest change of that layer's output on
        values distributed as its statistics say.

    Raises:
        KerasBNError: the model is not built, has NaN or infinity in its weights, or no batch normalization.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn")])
    >>> result = convert(model)
    >>> type(result.model.get_layer("bn")) is BatchNormalization
    True
    """
    check_model(model)
    if not (isinstance(to, type) and issubclass(to, BatchNormalization)):
        raise KerasBNError(f"to={to!r}: it must be keras_bn.BatchNormalization or a subclass of it.")
    found = [(path, layer) for path, layer in layers_in(model) if is_batch_normalization(layer)]
    if not found:
        raise KerasBNError(f"Model {model.name!r} has no batch normalization layer.")
    check_weights(model)
    pairs: list[tuple[Any, Any]] = []
    rows = []
    for path, layer in found:
        try:
            new = _made_of(layer, to, unbiased_variance)
        except KerasBNError as error:
            rows.append(Row(path, type(layer).__name__, "left alone", str(error)))
            continue
        pairs.append((layer, new))
        convention = "unbiased" if new.unbiased_variance else "biased"
        reason = f"to {type(new).__name__}, averaging the {convention} variance"
        rows.append(Row(path, type(layer).__name__, "converted", reason, change(layer, new)))
    if in_place:
        with exchanged_in_place(model, pairs):
            result = model
    else:
        result = Clone(model, pairs).model
    return SurgeryResult(result, Report("convert", tuple(rows)))


def _made_of(layer: Any, to: type[BatchNormalization], unbiased_variance: bool) -> BatchNormalization:
    """Our layer, built, with the options and weights of one of Keras's.

    Raises:
        KerasBNError: if there is none that trains alike.
    """
    if isinstance(layer, BatchNormalization):
        raise KerasBNError("is keras_bn's already")
    if not is_keras(layer):
        raise KerasBNError(
            f"{type(layer).__name__} is a subclass of Keras's layer and may compute something else"
        )
    new = ours(layer, unbiased_variance, to)
    if layer.built:
        shape: list[int | None] = [None] * layer.input_spec.ndim
        shape[layer.axis] = layer.moving_mean.shape[0]
        with ExitStack() as scopes:
            for scope in layer.moving_mean.path.split("/")[:-2]:
                scopes.enter_context(keras.name_scope(scope))
            new.build(tuple(shape))
        new.set_weights(weights_for(new, layer))
    return new
