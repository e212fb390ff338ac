"""PyTorch: its native batch normalization, which is cuDNN's, MIOpen's or its own, as the device has it."""

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
    x = _on_device_of(gamma, inputs)
    rank, channels = x.ndim, x.shape[axis]
    axis %= rank
    count = x.numel() // max(channels, 1)
    # Of a single value there is no unbiased variance, which is what the operation returns.
    if mask is not None or axis not in (1, rank - 1) or count < 2 or gamma.dtype == torch.float64:
        return general.batch_norm(x, gamma, beta, epsilon, axis, mask)
    y, mean, variance = _with_moments(x, gamma, beta, axis, epsilon)
    if _loses_digits(x, mean, variance, epsilon):
        shift = _typical(x.detach(), axis)
        centred = x - shift.reshape([-1 if a == axis else 1 for a in range(rank)])
        y, mean, variance = _with_moments(centred, gamma, beta, axis, epsilon)
        mean = mean + shift
    return y, Moments(float(count), mean, variance * ((count - 1) / count))


def _on_device_of(weight: Any, inputs: Any) -> Any:
    """The inputs as a tensor where Keras puts tensors, which `convert_to_tensor` takes longer to find out."""
    there = isinstance(inputs, torch.Tensor) and inputs.device == weight.device
    return inputs if there else ops.convert_to_tensor(inputs)


def _with_moments(x: Any, gamma: Any, beta: Any, axis: int, epsilon: float) -> tuple[Any, Any, Any]:
    """Outputs, mean and unbiased variance: running averages that a batch updates in full are its moments."""
    mean, variance = torch.zeros_like(gamma), torch.zeros_like(gamma)
    return _native(x, gamma, beta, mean, variance, axis, epsilon, training=True), mean, variance


def _loses_digits(x: Any, mean: Any, variance: Any, epsilon: float) -> bool:
    """Whether a mean is more than eight deviations from zero, where that costs digits.

    On a CPU the operation computes x * scale + offset and may sum in float32. 16 bits do not hold such
    values, compilers write (x - mean) * scale themselves, and other devices would have to be waited for.
    """
    if not x.is_cpu or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    # Where there is a NaN the other channels are not known to be safe.
    return not float(torch.addcmul(variance, mean, mean, value=-1 / 64).min()) >= -epsilon


def _typical(x: Any, axis: int) -> Any:
    """A value of each channel that is hardly an outlier: the median of three, from as many examples."""
    index: list[slice | int] = [length // 2 for length in x.shape]
    index[axis] = slice(None)
    a, b, c = (x[tuple([len(x) * quarter // 4, *index[1:]])] for quarter in (1, 2, 3))
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def scale_and_offset(gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> tuple[Any, Any]:
    """As `kernels.scale_and_offset`."""
    scale = gamma / torch.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def affine(inputs: Any, scale: Any, offset: Any, axis: int) -> Any:
    """As `kernels.affine`, in one pass."""
    x = _on_device_of(scale, inputs)
    rank = x.ndim
    axis %= rank
    same_dtype, last = x.dtype == scale.dtype, axis == rank - 1
    if (same_dtype and last) or axis not in (1, rank - 1) or scale.dtype == torch.float64:
        shape = [-1 if a == axis else 1 for a in range(rank)]
        return torch.addcmul(offset.reshape(shape), x.to(scale.dtype), scale.reshape(shape))
    # With a mean of 0 and a variance of 1, the native operation at inference is x * scale + offset. With the
    # channels first or 16 bits it takes 0.1 to 0.5 of the time of `addcmul`, elsewhere 1.2 to 2 times.
    return _native(
        x, scale, offset, torch.zeros_like(scale), torch.ones_like(scale), axis, 0.0, training=False
    )


def _native(
    x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, axis: int, epsilon: float, training: bool
) -> Any:
    """PyTorch's operation, with the channels where it expects them; the memory stays as it is."""
    rank = x.ndim
    if axis == 1:
        channels_second = x
    elif rank in (4, 5):  # images keep their axes, as a tensor in channels-last memory format
        channels_second = x.movedim(-1, 1)
    else:
        channels_second = x.reshape(-1, x.shape[-1])
    enabled = torch.backends.cudnn.enabled
    y = torch.batch_norm(channels_second, gamma, beta, mean, variance, training, 1.0, epsilon, enabled)
    if axis == 1:
        return y
    return y.movedim(1, -1) if rank in (4, 5) else y.reshape(x.shape)
