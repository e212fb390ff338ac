"""The weights of convolutions and dense layers, taking up affine maps before and after them, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_bn.errors import KerasBNError
from keras_bn.layers.linear import (
    CONVOLUTIONS,
    DEPTHWISE,
    KINDS,
    SEPARABLE,
    TRANSPOSED,
    channel_axis,
    is_linear,
    vector_shape,
)
from keras_bn.surgery._affine import Affine, Blocked, on_a_step

_BFLOAT16_MAX = (2 - 2**-7) * 2.0**127  # NumPy knows the other types


def misplaces_bias(layer: Any, output_shape: tuple[int | None, ...]) -> bool:
    """Whether Keras (3.15) adds the bias of a channels-first layer along the last axis.

    `keras.ops.add` takes a vector for a bias of channels that come last wherever that axis is as long.
    """
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    return channels_first and output_shape[-1] in (None, output_shape[1])


def why_not_plain(layer: Any) -> str:
    """The reason why a convolution or dense layer cannot get other weights, or an empty string."""
    if type(layer) not in KINDS:
        return f"is a {type(layer).__name__}"
    if getattr(layer, "quantization_mode", None):
        return f"is quantized to {layer.quantization_mode}"
    if has_lora(layer):
        # Merging leaves zeros in both; before the first step of an adaptation, one factor is not zero.
        if any(ops.convert_to_numpy(factor).any() for factor in (layer.lora_kernel_a, layer.lora_kernel_b)):
            return "has LoRA weights that are not merged; save and load the model, which merges them"
        return ""
    return "" if is_linear(layer) else "has other weights than a kernel and a bias"


def has_lora(layer: Any) -> bool:
    """Whether low-rank adaptation is enabled, be it merged or not."""
    return bool(getattr(layer, "lora_enabled", False))


def largest_number(dtype: str) -> float:
    """The largest finite number of a dtype.

    >>> largest_number("float16")
    65504.0
    """
    return _BFLOAT16_MAX if dtype == "bfloat16" else float(np.finfo(dtype).max)


def _float64(weight: Any) -> NDArray[np.float64]:
    return ops.convert_to_numpy(weight).astype(np.float64)


@dataclass(frozen=True)
class Linear:
    """The weights of one layer.

    Attributes:
        layer: one for which `is_linear` holds.
        input_shape: the shape of its inputs with the batch axis; tells whether "same" pads.
        kernels: its weights but the bias, in order.
        bias: None if it has none.
    """

    layer: keras.Layer
    input_shape: tuple[int | None, ...]
    kernels: list[NDArray[np.float64]]
    bias: NDArray[np.float64] | None

    @classmethod
    def of(cls, layer: keras.Layer, input_shape: tuple[int | None, ...]) -> Linear:
        """The weights a layer has; of LoRA, which has been merged, there is nothing left."""
        names = ("depthwise_kernel", "pointwise_kernel") if type(layer) in SEPARABLE else ("kernel",)
        kernels = [_float64(getattr(layer, name)) for name in names]
        return cls(layer, input_shape, kernels, _float64(layer.bias) if layer.use_bias else None)

    @property
    def changes(self) -> dict[str, Any]:
        """The entries of the layer's configuration that go with the new weights."""
        changes: dict[str, Any] = {"use_bias": self.bias is not None}
        return changes | ({"lora_rank": None, "lora_alpha": None} if has_lora(self.layer) else {})

    @property
    def axis(self) -> int:
        """The channel axis of its inputs and outputs."""
        return channel_axis(self.layer, len(self.input_shape))

    def then(self, affine: Affine) -> Linear:
        """With a map that follows taken up: W' = W scale, b' = b scale + offset, per output channel.

        Raises:
            Blocked: if an activation lies between, or the map differs from place to place.
        """
        if self.layer.activation is not keras.activations.linear:
            raise Blocked(f"{self.layer.name} has an activation")
        scale, offset = affine.vectors(self.axis)
        kernel = self.kernels[-1] * scale.reshape(vector_shape(self.layer))
        bias = None if self.bias is None else self.bias * scale
        return replace(self, kernels=[*self.kernels[:-1], kernel], bias=_sum(bias, offset))

    def after(self, affine: Affine) -> Linear:
        """With a map that comes before taken up: W' = scale W, b' = b + offset W, per input channel.

        Raises:
            Blocked: if the layer pads with zeros, to which the offset would not be added; or the map differs
                from place to place.
        """
        scale, offset = affine.vectors(self.axis)
        if offset.any() and self._pads():
            raise Blocked(f"the offset is not zero and {self.layer.name} pads with zeros")
        kernel = self.kernels[0] * self._per_input(scale)
        bias = _sum(self.bias, self._response(offset)) if offset.any() else self.bias
        return replace(self, kernels=[kernel, *self.kernels[1:]], bias=bias)

    def weights(self) -> list[NDArray[np.float64]]:
        """The new weights in the layer's order.

        Raises:
            KerasBNError: if one is beyond what the layer stores or computes in.
        """
        arrays = [*self.kernels] if self.bias is None else [*self.kernels, self.bias]
        for dtype in (self.layer.variable_dtype, self.layer.compute_dtype):
            limit, largest = largest_number(dtype), max(np.abs(array).max() for array in arrays)
            if not largest <= limit:
                raise KerasBNError(
                    f"With BN folded in, the weights of {self.layer.name!r} reach {largest:.3g}, beyond the "
                    f"{limit:g} that {dtype} can hold; leave BN unfolded, or rebuild the model in float32."
                )
        return arrays

    def _per_input(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """A vector over the input channels so that it multiplies the first kernel."""
        kind = type(self.layer)
        if kind in TRANSPOSED:
            return vector
        if kind in CONVOLUTIONS:
            # Each group of output channels sees its own group of input channels.
            groups, outputs = self.layer.groups, self.layer.filters
            return np.repeat(vector.reshape(groups, -1).T, outputs // groups, axis=1)
        return vector[:, None]

    def _response(self, offset: NDArray[np.float64]) -> NDArray[np.float64]:
        """The output of the layer for a constant input, without its bias."""
        spread = self.kernels[0] * self._per_input(offset)
        if type(self.layer) is keras.layers.Dense:
            return spread.sum(0)
        spatial = tuple(range(spread.ndim - 2))
        if type(self.layer) in DEPTHWISE:
            return spread.sum(spatial).ravel()
        if type(self.layer) in SEPARABLE:
            return spread.sum(spatial).ravel() @ self.kernels[1].reshape(-1, self.kernels[1].shape[-1])
        return spread.sum((*spatial, spread.ndim - 2))

    def _pads(self) -> bool:
        """Whether zeros are added around the input. A transposed convolution always acts as if."""
        layer = self.layer
        if type(layer) is keras.layers.Dense:
            return False
        if type(layer) in TRANSPOSED:
            return True
        lengths = [n for i, n in enumerate(self.input_shape) if i not in (0, self.axis)]
        sizes = zip(lengths, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True)
        return any(_padding(layer.padding, *size) for size in sizes)


@dataclass(frozen=True)
class Stepwise:
    """The weights of a layer that a TimeDistributed calls on every step."""

    linear: Linear

    def then(self, affine: Affine) -> Stepwise:
        """As `Linear.then`, of a map that is the same at every step."""
        return Stepwise(self.linear.then(on_a_step(affine)))

    def after(self, affine: Affine) -> Stepwise:
        """As `Linear.after`, of a map that is the same at every step."""
        return Stepwise(self.linear.after(on_a_step(affine)))


def _sum(bias: NDArray[np.float64] | None, shift: NDArray[np.float64]) -> NDArray[np.float64] | None:
    if bias is None:
        return shift if shift.any() else None
    return bias + shift


def _padding(mode: str, length: int | None, kernel: int, stride: int, dilation: int) -> int:
    """The number of zeros added along one axis, or the largest possible one if its length is unknown."""
    extent = (kernel - 1) * dilation
    if mode == "valid":
        return 0
    if mode == "causal" or length is None:
        return extent
    return max((math.ceil(length / stride) - 1) * stride + extent + 1 - length, 0)
