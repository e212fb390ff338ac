"""Fast paths of the backends, and the rule for when each applies."""

from typing import Any

import keras

if keras.backend.backend() == "tensorflow":
    from keras_bn.kernels.tensorflow import applies, fused_batch_norm
else:

    def applies(x: Any) -> bool:
        """No other backend has a fast path: `keras.ops` is compiled there anyway."""
        return False


__all__ = ["applies", "fused_batch_norm"]
