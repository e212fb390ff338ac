"""Checks of a model that the functions on models share."""

from __future__ import annotations

from typing import Any

import keras

from keras_bn.errors import KerasBNError
from keras_bn.layers.arguments import is_number


def check_keras_model(model: Any) -> None:
    """Raise a KerasBNError unless `model` is a model of Keras 3, naming Keras 2 where it is one of those.

    >>> check_keras_model(keras.Sequential())
    """
    if isinstance(model, keras.Model):
        return
    packages = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if "tf_keras" in packages:
        raise KerasBNError(
            f"Model {getattr(model, 'name', '')!r} is a model of tf_keras (Keras 2); this package works on "
            "models of Keras 3. Save it with model.save('model.h5') and load that file with "
            "keras.models.load_model, or rebuild it with Keras 3 and call set_weights(old.get_weights()); "
            "see docs/migration.md."
        )
    raise KerasBNError(f"Expected a keras.Model, got {type(model).__name__}.")


def check_model(model: Any) -> None:
    """Raise a KerasBNError unless it is a Keras model that is built."""
    check_keras_model(model)
    if not model.built:
        raise KerasBNError(
            f"Model {model.name!r} is not built: start it with a keras.Input, or call it on a batch of data, "
            "or call model.build(input_shape) first."
        )


def check_weights(model: keras.Model) -> None:
    """Raise a KerasBNError if a weight holds NaN or infinity."""
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype) and not keras.ops.all(keras.ops.isfinite(weight)):
            raise KerasBNError(
                f"Weight {weight.path!r} of model {model.name!r} holds NaN or infinity; load sound weights."
            )


def check_number(argument: str, value: Any) -> None:
    """Raise a KerasBNError if an argument is not a number of at least 0."""
    if not is_number(value) or not value >= 0:
        raise KerasBNError(f"{argument}={value!r}; it must be a number of at least 0.")


def check_layer_class(value: Any) -> None:
    """Raise a KerasBNError if `layer=` is not a class of Keras layers."""
    if not (isinstance(value, type) and issubclass(value, keras.Layer)):
        raise KerasBNError(
            f"layer={value!r}; it must be a class of Keras layers, such as keras_bn.BatchNormalization, not "
            "an instance or a name."
        )
