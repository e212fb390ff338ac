"""PyTorch: its native batch normalization, which is cuDNN's, MIOpen's or its own, whatever the device."""

from __future__ import annotations

from typing import Any

import torch
from keras import ops

from keras_bn.kernels import general
from keras_bn.statistics.moments import Moments


def batch_norm(
    inputs: Any, gamma: Any, beta: Any, epsilon: float, axis: int, mask: Any = None
) -> tuple[Any, Moments]:
    """As `kernels.batch_norm`; masks, other axes than the second and the last, and float64 are general."""
    x = ops.convert_to_tensor(inputs)
    rank, channels = x.ndim, x.shape[axis]
    axis %= rank
    count = x.numel() // max(channels, 1)
    # Of a single value there is no unbiased variance, which is what the operation returns.
    if mask is not None or axis not in (1, rank - 1) or count < 2 or gamma.dtype == torch.float64:
        return general.batch_norm(x, gamma, beta, epsilon, axis, mask)
    # Updated in full by this batch, its running averages are the moments.
    mean, variance = torch.zeros_like(gamma), torch.zeros_like(gamma)
    y = torch.batch_norm(
        _channels_second(x, axis),
        gamma,
        beta,
        mean,
        variance,
        training=True,
        momentum=1.0,
        eps=epsilon,
        cudnn_enabled=torch.backends.cudnn.enabled,
    )
    if axis == rank - 1:
        y = y.movedim(1, -1) if y.ndim == rank else y.reshape(x.shape)
    moments = Moments(gamma.new_tensor(float(count)), mean, variance * ((count - 1) / count))
    return y, moments


def _channels_second(x: Any, axis: int) -> Any:
    """A view of `x` with the channels where the operation expects them; the memory stays as it is."""
    if axis == 1:
        return x
    # Images keep their axes, as a tensor in channels-last memory format. Other ranks have no such format.
    return x.movedim(-1, 1) if x.ndim in (4, 5) else x.reshape(-1, x.shape[-1])


def affine(inputs: Any, scale: Any, offset: Any, axis: int) -> Any:
    """As `kernels.affine`, in one pass."""
    x = ops.convert_to_tensor(inputs)
    shape = [1] * x.ndim
    shape[axis] = -1
    return torch.addcmul(offset.reshape(shape), x.to(scale.dtype), scale.reshape(shape))
