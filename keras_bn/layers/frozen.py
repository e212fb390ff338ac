"""Batch normalization with frozen statistics that keeps the configuration of the layer it replaces."""

from __future__ import annotations

from typing import Any

import keras

from keras_bn.layers.batch_normalization import BatchNormalization


@keras.saving.register_keras_serializable(package="keras_bn")
class FrozenBatchNormalization(BatchNormalization):
    """Batch normalization by the population statistics, in training too.

    `keras_bn.freeze` replaces a BN layer by this one if it cannot be joined with the layer before it. It is a
    `BatchNormalization` with `frozen_statistics=True`: in training and at inference, y = x * scale + offset,
    with scale = gamma / sqrt(moving_variance + epsilon) and offset = beta - moving_mean * scale. gamma and
    beta are trained. moving_mean and moving_variance never change.

    Args:
        original: Configuration of the layer that `keras_bn.unfreeze` restores, from
            `keras.saving.serialize_keras_object`.
        **kwargs: Arguments of `BatchNormalization`. `frozen_statistics` is always True.

    >>> original = keras.saving.serialize_keras_object(keras.layers.BatchNormalization(name="bn"))
    >>> layer = FrozenBatchNormalization(original, name="bn")
    >>> layer.frozen_statistics, type(layer.original_layer()).__module__.partition(".")[0]
    (True, 'keras')
    """

    def __init__(self, original: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "frozen_statistics": True})
        self._original = original

    def original_layer(self) -> keras.Layer:
        """Create the replaced layer again, without weights."""
        unbuilt = {key: value for key, value in self._original.items() if key != "build_config"}
        return keras.saving.deserialize_keras_object(unbuilt)

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {**super().get_config(), "original": self._original}
