"""Fast paths of the backends, for normalization by the moments of a batch."""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_bn.kernels.tensorflow import batch_norm

    AVAILABLE = True
else:
    # `keras.ops` is compiled there anyway.
    AVAILABLE = False

__all__ = ["AVAILABLE", "batch_norm"]
