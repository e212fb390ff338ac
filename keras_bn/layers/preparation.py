"""What Keras does before and after it calls a layer, and when nothing of it has an effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_bn._keras import get_mask, has_losses_of_a_call, is_rematerialized


def needs_no_preparation(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether `keras.layers.Layer.__call__` would hand these arguments on as they are, and the result back.

    That method converts inputs, builds the layer, finds out `training` and the mask, opens scopes for names
    and dtypes, and records losses and symbolic calls. On PyTorch, where nothing is compiled, it does so in
    every step and takes longer than to normalize a small batch. What follows it, PyTorch's hooks, remat and
    the choice of `call`, belongs to the classes below `Layer` and is left to them.

    The layer must have no other layers inside, which would read `training` from its call, and no weights that
    are cast.
    """
    if len(args) != 1 or not isinstance(kwargs.get("training"), bool):
        return False
    if len(kwargs) != 1 and (kwargs.keys() != {"training", "mask"} or kwargs["mask"] is not None):
        return False
    import torch

    inputs = args[0]
    return (
        type(inputs) is torch.Tensor
        and layer.built
        and inputs.ndim == layer.input_spec.ndim
        and inputs.shape[layer.axis] == layer.input_spec.axes[layer.axis % inputs.ndim]
        and keras.backend.standardize_dtype(inputs.dtype) == layer.compute_dtype
        and get_mask(inputs) is None
        and layer.activity_regularizer is None
        and not has_losses_of_a_call(layer)
        and keras.distribution.distribution() is None
    )


def has_one_way_to_be_called(layer: Any, args: Sequence[Any]) -> bool:
    """Whether `keras.Operation.__call__` would choose `layer.call`.

    It looks for symbolic tensors, remat and quantization first, and wraps `call` to add the arguments to the
    messages of errors, which takes a tenth of a training step of a small batch.
    """
    import torch

    return (
        len(args) > 0
        and type(args[0]) is torch.Tensor
        and not is_rematerialized(layer)
        and layer.quantization_mode is None
    )
