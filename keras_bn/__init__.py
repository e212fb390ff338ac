"""Batch normalization for Keras: the layer, model surgery and export."""

from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization

__all__ = ["BatchNormalization", "KerasBNError"]
