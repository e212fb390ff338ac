"""Convolutions and dense layers, and which axes of their kernels are the output channels."""

from __future__ import annotations

from typing import Any

import keras

_LAYERS = keras.layers
CONVOLUTIONS = (_LAYERS.Conv1D, _LAYERS.Conv2D, _LAYERS.Conv3D)
TRANSPOSED = (_LAYERS.Conv1DTranspose, _LAYERS.Conv2DTranspose, _LAYERS.Conv3DTranspose)
DEPTHWISE = (_LAYERS.DepthwiseConv1D, _LAYERS.DepthwiseConv2D)
SEPARABLE = (_LAYERS.SeparableConv1D, _LAYERS.SeparableConv2D)
KINDS = (_LAYERS.Dense, *CONVOLUTIONS, *TRANSPOSED, *DEPTHWISE, *SEPARABLE)


def is_linear(layer: Any) -> bool:
    """Whether it is a built convolution or dense layer whose weights are a kernel or two and a bias.

    >>> is_linear(keras.layers.ReLU())
    False
    """
    # The very classes: a subclass may do anything. Quantized layers and those with LoRA have more weights.
    if type(layer) not in KINDS:
        return False
    return len(layer.weights) == layer.use_bias + (2 if type(layer) in SEPARABLE else 1)


def channel_axis(layer: Any, rank: int) -> int:
    """The channel axis of the inputs and outputs, which have this rank."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def vector_shape(layer: Any) -> tuple[int, ...]:
    """The shape in which a vector over the output channels multiplies the last kernel.

    That is the only one, but for separable convolutions, where it is the pointwise one.
    """
    if type(layer) in TRANSPOSED:
        return (-1, 1)
    return tuple(layer.kernel.shape[-2:]) if type(layer) in DEPTHWISE else (-1,)
