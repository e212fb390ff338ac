"""Affine maps x * scale + offset on the features of a tensor, and how they pass through layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.surgery.graph import Call

_LAYERS = keras.layers


class Blocked(Exception):
    """An affine map cannot pass here; the message says why."""


@dataclass(frozen=True)
class Affine:
    """x * scale + offset, float64.

    Both arrays have one axis per axis of x but the batch, each of length 1 (the same everywhere along it)
    or of x's length. So a BN layer over (batch, height, width, channels) has arrays of shape (1, 1,
    channels).
    """

    scale: NDArray[np.float64]
    offset: NDArray[np.float64]

    def then(self, other: Affine) -> Affine:
        """This map followed by another."""
        return Affine(self.scale * other.scale, self.offset * other.scale + other.offset)

    def after(self, other: Affine) -> Affine:
        """Another map followed by this one."""
        return other.then(self)

    def mapped(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Affine:
        """The same function applied to both arrays."""
        return Affine(function(self.scale), function(self.offset))

    def vectors(self, axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scale and offset along `axis` of x, counted with the batch axis.

        Raises:
            Blocked: if they vary along any other axis.
        """
        axis = axis % (self.scale.ndim + 1) - 1
        if any(length > 1 for i, length in enumerate(self.scale.shape) if i != axis):
            raise Blocked("scale and offset vary along more than the channels")
        return self.scale.ravel(), self.offset.ravel()


def affine_of(call: Call) -> Affine:
    """The function of the BN layer of `call` at inference.

    Raises:
        KerasBNError: if a weight or statistic makes it NaN or infinite.
    """
    rank = len(call.node.input_tensors[0].shape)
    shape = [1] * (rank - 1)
    shape[normalized_axis(call) - 1] = -1
    scale, offset = inference_affine(call.own_layer, call.path)
    return Affine(scale, offset).mapped(lambda v: v.reshape(shape))


def normalized_axis(call: Call) -> int:
    """The axis of the inputs of `call` that its BN layer, perhaps in a TimeDistributed, normalizes."""
    layer, rank = call.own_layer, len(call.node.input_tensors[0].shape)
    return layer.axis % rank if layer is call.layer else layer.axis % (rank - 1) + 1


def on_a_step(affine: Affine) -> Affine:
    """A map on all steps of a TimeDistributed as a map on each.

    Raises:
        Blocked: if it differs from step to step.
    """
    if affine.scale.shape[0] != 1:
        raise Blocked("scale and offset differ from step to step")
    return affine.mapped(lambda v: v[0])


def inference_affine(layer: Any, path: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and offset of a BN layer at inference, one value per channel.

    Raises:
        KerasBNError: if a weight or statistic makes it NaN or infinite.
    """
    weights = {w.name: ops.convert_to_numpy(w).astype(np.float64) for w in layer.weights}
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise KerasBNError(f"{name} of {path!r} holds NaN or infinity; recalibrate or retrain it.")
    if not (weights["moving_variance"] + layer.epsilon > 0).all():
        raise KerasBNError(
            f"moving_variance of {path!r} holds values of which epsilon={layer.epsilon:g} makes nothing "
            "positive, so there is nothing to divide by; recalibrate it or raise epsilon."
        )
    if isinstance(layer, BatchNormalization):
        # Its own float32 arithmetic: where it is the identity, the fold leaves every weight as it was.
        scale, offset = (
            ops.convert_to_numpy(vector).astype(np.float64) for vector in layer.inference_affine()
        )
    else:
        scale = weights.get("gamma", 1.0) / np.sqrt(weights["moving_variance"] + layer.epsilon)
        offset = weights.get("beta", 0.0) - weights["moving_mean"] * scale
    return scale, offset


def cancellation(call: Call, affine: Affine) -> float:
    """How many times larger the offset is than what the BN layer of `call` puts out, as root mean squares.

    The outputs have mean beta and deviation gamma, if the statistics are those of the data. A large offset
    cancels against inputs whose mean is far larger than their deviation.

    Args:
        affine: the map of the BN layer, or one that includes maps before it.
    """
    layer = call.own_layer
    scale, offset = inference_affine(layer, call.path)
    statistics = [
        ops.convert_to_numpy(w).astype(np.float64) for w in (layer.moving_mean, layer.moving_variance)
    ]
    gamma, beta = scale * np.sqrt(statistics[1] + layer.epsilon), offset + scale * statistics[0]
    size = np.sqrt(np.mean(gamma**2 + beta**2))
    return float(np.sqrt(np.mean(affine.offset**2)) / size) if size else 0.0


def before(call: Call, affine: Affine) -> list[Affine]:
    """The maps on the inputs of `call` that do what `affine` does on its output.

    Raises:
        Blocked: if there are none, or none are known.
    """
    if type(call.layer) is _LAYERS.Concatenate:
        return _split(call, affine)
    return [_pass(call, affine, backward=True)]


def after(call: Call, affine: Affine) -> Affine:
    """The map on the output of `call` that does what `affine` does on its input.

    Raises:
        Blocked: if there is none, or none is known.
    """
    return _pass(call, affine, backward=False)


_IDENTITY_AT_INFERENCE = (
    _LAYERS.ActivityRegularization,
    _LAYERS.AlphaDropout,
    _LAYERS.Dropout,
    _LAYERS.GaussianDropout,
    _LAYERS.GaussianNoise,
    _LAYERS.Identity,
    _LAYERS.SpatialDropout1D,
    _LAYERS.SpatialDropout2D,
    _LAYERS.SpatialDropout3D,
)
# Each output is an average of inputs of its channel (weights that sum to one), or one of them.
_WEIGHTED_MEANS = (
    _LAYERS.AveragePooling1D,
    _LAYERS.AveragePooling2D,
    _LAYERS.AveragePooling3D,
    _LAYERS.Cropping1D,
    _LAYERS.Cropping2D,
    _LAYERS.Cropping3D,
    _LAYERS.UpSampling1D,
    _LAYERS.UpSampling2D,
    _LAYERS.UpSampling3D,
)
_GLOBAL_MEANS = (
    _LAYERS.GlobalAveragePooling1D,
    _LAYERS.GlobalAveragePooling2D,
    _LAYERS.GlobalAveragePooling3D,
)
_ZERO_PADDINGS = (_LAYERS.ZeroPadding1D, _LAYERS.ZeroPadding2D, _LAYERS.ZeroPadding3D)


def _pass(call: Call, affine: Affine, backward: bool) -> Affine:
    if call.own_layer is not call.layer:
        return _pass(_step_of(call), on_a_step(affine), backward).mapped(lambda v: v[None])
    layer, kind = call.layer, type(call.layer)
    if kind in _IDENTITY_AT_INFERENCE or _is_linear_activation(layer):
        if call.kwargs.get("training"):
            raise Blocked(f"{call.path} is called with training=True")
        return affine
    if kind in _WEIGHTED_MEANS:
        return _channels_only(call, affine)
    if kind in _GLOBAL_MEANS:
        return _through_global_mean(call, affine, backward)
    if kind in _ZERO_PADDINGS:
        if affine.offset.any():
            raise Blocked(f"the offset is not zero and {call.path} pads with zeros")
        return _channels_only(call, affine)
    if kind in (_LAYERS.Flatten, _LAYERS.Reshape):
        return _through_reshape(call, affine, backward)
    if kind is _LAYERS.Permute:
        order = np.array(layer.dims) - 1
        return affine.mapped(lambda v: v.transpose(np.argsort(order) if backward else order))
    raise Blocked(f"{call.path} ({kind.__name__}) lies between")


def _step_of(call: Call) -> Call:
    """The call of the layer in a TimeDistributed on one step."""
    tensors = (call.node.input_tensors, call.node.outputs)
    inputs, outputs = ([keras.KerasTensor((t.shape[0], *t.shape[2:])) for t in part] for part in tensors)
    node = SimpleNamespace(input_tensors=inputs, outputs=outputs)
    return replace(call, layer=call.own_layer, node=node)


def _is_linear_activation(layer: Any) -> bool:
    return type(layer) is _LAYERS.Activation and layer.activation is keras.activations.linear


def _channel_axis(layer: Any, rank: int) -> int:
    return 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else rank - 1


def _channels_only(call: Call, affine: Affine) -> Affine:
    affine.vectors(_channel_axis(call.layer, affine.scale.ndim + 1))
    return affine


def _through_global_mean(call: Call, affine: Affine, backward: bool) -> Affine:
    rank = len(call.node.input_tensors[0].shape)
    shape = [1] * (rank - 1)
    shape[_channel_axis(call.layer, rank) - 1] = -1
    if not backward:
        _channels_only(call, affine)
        shape = shape if call.layer.keepdims else [-1]
    return affine.mapped(lambda v: v.reshape(shape))


def _through_reshape(call: Call, affine: Affine, backward: bool) -> Affine:
    if getattr(call.layer, "data_format", None) == "channels_first":
        raise Blocked(f"{call.path} moves the channels")
    source, target = call.node.input_tensors[0].shape[1:], call.node.outputs[0].shape[1:]
    if backward:
        source, target = target, source
    if None in source or None in target:
        raise Blocked(f"{call.path} reshapes an axis of unknown length")
    full = affine.mapped(lambda v: np.broadcast_to(v, source).reshape(target))
    for axis in range(len(target)):
        first = full.mapped(partial(np.take, indices=[0], axis=axis))
        if (full.scale == first.scale).all() and (full.offset == first.offset).all():
            full = first
    return full


def _split(call: Call, affine: Affine) -> list[Affine]:
    axis = call.layer.axis % len(call.node.outputs[0].shape) - 1
    lengths = [tensor.shape[axis + 1] for tensor in call.node.input_tensors]
    if affine.scale.shape[axis] == 1:
        return [affine] * len(lengths)
    ends = np.cumsum(lengths)[:-1]
    scales, offsets = (np.split(v, ends, axis) for v in (affine.scale, affine.offset))
    return [Affine(scale, offset) for scale, offset in zip(scales, offsets, strict=True)]
