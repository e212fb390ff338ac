"""One multiplication and one addition per value, which is inference of batch normalization."""

from typing import Any

import keras
from keras import ops

from keras_bn import kernels
from keras_bn.errors import KerasBNError
from keras_bn.layers.arguments import checked_axis


@keras.saving.register_keras_serializable(package="keras_bn")
class ChannelAffine(keras.layers.Layer):
    """Multiplies each channel by a scale and adds an offset: y = x * scale + offset.

    `keras_bn.fold` creates this layer for a BN layer that cannot be folded into another layer. The arithmetic
    is done in float32 at least, and the result has the layer's compute dtype, as in `BatchNormalization`.

    Args:
        axis: Channel axis of inputs of rank 2 or more.
        **kwargs: Arguments of every Keras layer, such as name and dtype.

    The weights are scale, initialized to ones, and offset, initialized to zeros, of shape `(channels,)`, in
    that order.

    Raises:
        KerasBNError: When built, if the length of the channel axis is not known.

    >>> layer = ChannelAffine()
    >>> layer.build((None, 2))
    >>> layer.set_weights([np.array([2.0, 3.0]), np.array([0.0, 1.0])])
    >>> ops.convert_to_numpy(layer(np.ones((1, 2), "float32")))
    array([[2., 4.]], dtype=float32)
    """

    def __init__(self, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = checked_axis(axis, self.name)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create scale and offset."""
        channels = input_shape[self.axis] if -len(input_shape) <= self.axis < len(input_shape) else None
        if channels is None:
            raise KerasBNError(
                f"Layer {self.name!r}: inputs of shape {tuple(input_shape)} have no axis {self.axis} of "
                f"known length."
            )
        dtype = "float64" if self.variable_dtype == "float64" else "float32"
        self.scale = self.add_weight((channels,), "ones", dtype, autocast=False, name="scale")
        self.offset = self.add_weight((channels,), "zeros", dtype, autocast=False, name="offset")

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Multiply and add; `training` and `mask`, which BN takes, make no difference."""
        scale, offset = (ops.convert_to_tensor(vector) for vector in (self.scale, self.offset))
        return ops.cast(kernels.affine(inputs, scale, offset, self.axis), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {**super().get_config(), "axis": self.axis}
