"""The general path."""

from keras_bn.kernels.general import affine, batch_norm

__all__ = ["affine", "batch_norm"]
