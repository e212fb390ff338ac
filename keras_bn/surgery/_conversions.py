"""From the options and weights of one BN layer to those of another."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.renorm import BatchRenormalization

_SHARED_WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance")
# Stands for no bound on r or d, which must be finite.
_UNBOUNDED = 1e30


def is_keras(layer: Any) -> bool:
    """Whether it is Keras's BN layer itself: a subclass may compute something else."""
    return type(layer) is keras.layers.BatchNormalization


def shared_options(layer: Any) -> dict[str, Any]:
    """The options of Keras's layer that ours has as well, as arguments of its constructor."""
    config = layer.get_config()
    for name in ("renorm", "renorm_clipping", "renorm_momentum"):  # Keras before 3.14 has none of the three
        config.pop(name, None)
    config["unbiased_variance"] = False
    # Keras accepts, and ignores, the options of a weight that is not there.
    for weight, present in (("beta", layer.center), ("gamma", layer.scale)):
        if not present:
            config |= {f"{weight}_regularizer": None, f"{weight}_constraint": None}
    return config


def ours(
    layer: Any, unbiased_variance: bool, kind: type[BatchNormalization] = BatchNormalization
) -> BatchNormalization:
    """Our layer with the options of one of Keras's; of class `kind`, unless that renormalizes."""
    config = shared_options(layer) | {"unbiased_variance": unbiased_variance}
    if not getattr(layer, "renorm", False):
        return kind(**config)
    clipping, renorm_momentum = layer.renorm_clipping or {}, layer.renorm_momentum
    r_max, d_max = (clipping.get(name) or _UNBOUNDED for name in ("rmax", "dmax"))
    if not math.isclose(clipping.get("rmin") or 1 / _UNBOUNDED, 1 / r_max, rel_tol=1e-6):
        raise KerasBNError(
            f"renorm_clipping={clipping}: r is bounded by 1 / r_max here; set rmin to 1 / rmax"
        )
    if renorm_momentum != layer.momentum:
        raise KerasBNError(
            f"renorm_momentum={renorm_momentum} is not momentum={layer.momentum}; there is one average here"
        )
    averages = (layer.renorm_mean, layer.moving_mean), (layer.renorm_stddev, layer.moving_stddev)
    arrays = [[ops.convert_to_numpy(average) for average in pair] for pair in averages]
    if not all(np.allclose(a, b, rtol=1e-5) for a, b in arrays):
        raise KerasBNError("its averages for training and for inference differ; there is one average here")
    return BatchRenormalization(**config, r_max=r_max, d_max=d_max)


def weights_for(new: Any, old: Any) -> list[np.ndarray]:
    """The weights of `old` as `new`, built, takes them; what `old` does not have stays as it is.

    Statistics of each time step start from the ones for all steps. A cumulative average goes on as if it had
    seen one batch: with none, the next batch would replace what it holds.
    """
    arrays = []
    for weight in new.weights:
        value = getattr(old, weight.name, None) if weight.name in _SHARED_WEIGHTS else weight
        value = ops.convert_to_numpy(weight if value is None else value)
        if weight.name == "batches_seen":
            value = np.asarray(int(new.momentum is None), "int32")
        arrays.append(np.broadcast_to(value, weight.shape))
    return arrays


def change(old: Any, new: Any) -> float | None:
    """The largest difference of two layers on values distributed as their statistics say."""
    if not old.built:
        return None
    mean, variance = (
        ops.convert_to_numpy(v).astype("float64") for v in (old.moving_mean, old.moving_variance)
    )
    rank = old.input_spec.ndim
    values = np.random.default_rng(0).normal(size=(64, *[1] * (rank - 2), len(mean)))
    values = values * np.sqrt(variance) + mean
    x = ops.cast(np.moveaxis(values, -1, old.axis), old.compute_dtype)
    apart = ops.cast(old(x, training=False), "float32") - ops.cast(new(x, training=False), "float32")
    return float(ops.convert_to_numpy(ops.max(ops.abs(apart))))
