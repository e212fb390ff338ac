"""Normalization by the moments of a batch: one contract, and one implementation per backend.

    batch_norm(inputs, gamma, beta, epsilon, axis, mask) -> outputs, moments

`inputs` is a floating-point tensor of rank 2 or more, `gamma` and `beta` have shape (channels,) and the
dtype of the arithmetic, `axis` is the channel axis, and `mask` is None or what
`statistics.moments.aligned_mask` returns. The outputs have the shape of the inputs. The `Moments` are those
of the values under the mask, in gamma's dtype. Gradients go through the outputs to `inputs`, `gamma` and
`beta`, and not through the moments.

Inference takes two steps, where `scale` and `offset` have shape (channels,):

    scale_and_offset(gamma, beta, mean, variance, epsilon)
        -> gamma / sqrt(variance + epsilon), beta - mean * gamma / sqrt(variance + epsilon)
    affine(inputs, scale, offset, axis) -> inputs * scale + offset
"""

import importlib

import keras

_OWN = ("tensorflow", "jax", "torch")
_backend = keras.backend.backend()
_module = importlib.import_module(f"keras_bn.kernels.{_backend if _backend in _OWN else 'general'}")

batch_norm = _module.batch_norm
scale_and_offset = _module.scale_and_offset
affine = _module.affine

__all__ = ["affine", "batch_norm", "scale_and_offset"]
