"""The general path."""

from keras_bn.kernels.general import affine, batch_norm, scale_and_offset

__all__ = ["affine", "batch_norm", "scale_and_offset"]
