"""The BN layers of a model, wherever they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.joined import JoinedBatchNormalization
from keras_bn.statistics.population import PopulationMoments
from keras_bn.surgery._checks import check_model
from keras_bn.surgery._cloning import layers_in
from keras_bn.surgery.graph import Call, calls


def is_batch_normalization(layer: object) -> bool:
    """Whether it is Keras's BN layer or ours, or a subclass of either.

    >>> is_batch_normalization(keras.layers.BatchNormalization())
    True
    """
    return isinstance(layer, (keras.layers.BatchNormalization, BatchNormalization))


def averaged_variance(layer: keras.Layer, moments: PopulationMoments) -> NDArray[np.float64]:
    """The variance that a layer's moving_variance stands for: unbiased where the layer says so, else biased.

    Of a single value per channel there is no unbiased one, so it is the biased one then.
    """
    unbiased = getattr(layer, "unbiased_variance", False) and moments.count > 1
    return moments.unbiased_variance if unbiased else moments.variance


@dataclass(frozen=True, eq=False)
class Normalization:
    """A BN layer of a model.

    Attributes:
        layer: the layer.
        path: where it is: unique in the model, and readable.
    """

    layer: Any
    path: str

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the inputs that it was built for; empty if it was never built."""
        return tuple((self.layer.get_build_config() or {}).get("input_shape") or ())


def batch_normalizations(model: keras.Model) -> list[Normalization]:
    """The BN layers of a model in the order of its graph, or of its attributes if it is subclassed.

    Those in nested models, and those inside other layers (`TimeDistributed`, custom blocks), are included;
    the `path` of the latter is `block/bn`. A shared layer is listed once.

    Raises:
        KerasBNError: it is no model, or not built, or has none.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(name="bn")])
    >>> [found.path for found in batch_normalizations(model)]
    ['bn']
    """
    check_model(model)
    found = [Normalization(x, path) for path, x in layers_in(model) if is_batch_normalization(x)]
    if not found:
        raise KerasBNError(f"Model {model.name!r} has no batch normalization layer.")
    return found


def why_not_called(layer: Any, model: keras.Model) -> str:
    """The reason why no call of a BN layer is seen where a model runs."""
    for _, each in layers_in(model):
        if isinstance(each, JoinedBatchNormalization) and each.normalization is layer:
            return f"is computed together with {each.layer.name}, as freeze joined them; unfreeze it first"
    return "is never called"


def in_training_mode(model: keras.Model) -> list[str]:
    """The paths of BN layers that a call with training=True, theirs or an outer one, keeps in training.

    They normalize by the batch they are in, at inference too.

    >>> x = keras.Input((2,))
    >>> in_training_mode(keras.Model(x, keras.layers.BatchNormalization(name="bn")(x, training=True)))
    ['bn']
    """
    return [call.path for call in calls_in_training(calls(model))]


def calls_in_training(found: Iterable[Call], outer: bool = False) -> Iterator[Call]:
    """The calls of BN layers that are in training mode, by an argument of theirs or of a call around them."""
    for call in found:
        training = call.kwargs.get("training")
        inside = outer if training is None else training is not False
        yield from calls_in_training(call.inner, inside)
        layer = call.own_layer
        frozen = not getattr(layer, "trainable", True) or getattr(layer, "frozen_statistics", False)
        if inside and is_batch_normalization(layer) and not frozen:
            yield call


def set_statistics(
    layer: Any, moments: PopulationMoments, prior: float = 0
) -> tuple[str, str, None, dict[str, float]]:
    """Set the population statistics of a layer to `moments`; returns the last fields of its row in a report:
    the action, what came of it, and the figures of that.

    Args:
        layer: A BN layer, Keras's or ours.
        moments: Those of its inputs.
        prior: The number of values per channel that its present statistics count as.
    """
    if not moments.count:
        return "left alone", "the mask leaves no value", None, {}
    old_mean, old_variance = (_array(v) for v in (layer.moving_mean, layer.moving_variance))
    mean, variance = moments.mean, averaged_variance(layer, moments)
    if prior:
        share = 1.0 if np.isinf(prior) else prior / (prior + moments.count)
        apart = share * (1 - share) * (old_mean - mean) ** 2
        mean = share * old_mean + (1 - share) * mean
        variance = share * old_variance + (1 - share) * variance + apart
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    if getattr(layer, "renorm", False):  # Keras's layer keeps apart what it renormalizes to in training
        layer.renorm_mean.assign(mean)
        layer.renorm_stddev.assign(np.sqrt(variance + layer.epsilon))
    shift = np.abs(mean - old_mean) / np.sqrt(variance + layer.epsilon)
    ratio = (variance + layer.epsilon) / (old_variance + layer.epsilon)
    figures = {
        "values_per_channel": moments.count,
        "largest_mean_shift": float(shift.max()),
        "least_variance_ratio": float(ratio.min()),
        "largest_variance_ratio": float(ratio.max()),
    }
    reason = (
        f"{moments.count} values per channel; mean moved by up to {shift.max():.2g} deviations, variance by "
        f"factors of {ratio.min():.2g} to {ratio.max():.2g}"
    )
    return "recalibrated", reason, None, figures


@contextmanager
def statistics_kept(model: keras.Model, on_error_only: bool = False) -> Iterator[None]:
    """Restore the statistics of all BN layers exactly when the block ends, also by an exception."""
    found = [each.layer for each in batch_normalizations(model)]
    kept = [(v, np.array(ops.convert_to_numpy(v))) for layer in found for v in layer.non_trainable_variables]
    done = False
    try:
        yield
        done = on_error_only
    finally:
        for variable, value in () if done else kept:
            variable.assign(value)


def _array(variable: Any) -> NDArray[np.float64]:
    return np.array(ops.convert_to_numpy(variable), np.float64)
