"""Batch normalization for Keras: the layer, model surgery and export."""

from keras_bn.errors import KerasBNError
from keras_bn.export import export
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.saving.proof import verify_inference_mode

__all__ = ["BatchNormalization", "KerasBNError", "export", "verify_inference_mode"]
