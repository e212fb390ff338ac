"""The regularization that batch normalization makes superfluous (1502.03167, section 4.2.1)."""

from __future__ import annotations

from typing import Any

import keras

_DROPOUTS = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


def is_dropout(layer: Any) -> bool:
    """Whether it is a Dropout or SpatialDropout layer."""
    return isinstance(layer, _DROPOUTS)


def scaled_l2(layer: Any, factor: float) -> dict[str, Any]:
    """The entries of a layer's configuration that change when its L2 regularizers of weights are scaled."""
    changes = {}
    for name, regularizer in vars(layer).items():
        if not name.endswith("_regularizer") or name == "activity_regularizer":
            continue
        if type(regularizer) is keras.regularizers.L2:
            changes[name] = keras.regularizers.L2(float(regularizer.l2) * factor)
        elif type(regularizer) is keras.regularizers.L1L2 and regularizer.l2:
            changes[name] = keras.regularizers.L1L2(float(regularizer.l1), float(regularizer.l2) * factor)
    return changes
