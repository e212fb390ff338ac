"""Batch normalization for Keras: the layer, model surgery and export."""

from keras_bn.errors import KerasBNError

__all__ = ["KerasBNError"]
