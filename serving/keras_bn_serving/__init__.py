"""Querying TensorFlow Serving without TensorFlow, and serving its protocol without its binary."""

from keras_bn_serving.errors import ServingError

__version__ = "0.2.0"

__all__ = ["ServingError"]
