"""A weight as a node of a graph."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_bn")
class Weight(keras.layers.Layer):
    """A weight of a layer that was inlined. The output is the weight and does not depend on the input.

    `keras_bn.fold` and `keras_bn.retrofit` inline custom layers to process the graph inside them. The weights
    that the `call` of such a layer uses become tensors of the graph.

    Args:
        shape: Shape of the weight.
        **kwargs: Arguments of every Keras layer, such as name and dtype. The output has the compute dtype.

    >>> layer = Weight((2,))
    >>> layer.build((None, 3))
    >>> layer.set_weights([np.array([1.0, 2.0])])
    >>> ops.convert_to_numpy(layer(np.zeros((1, 3))))
    array([1., 2.], dtype=float32)
    """

    def __init__(self, shape: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(shape)

    def build(self, input_shape: Any) -> None:
        """Create the weight."""
        self.weight = self.add_weight(self.shape, "zeros", name="weight")

    def call(self, inputs: Any) -> Any:
        """The weight."""
        return ops.convert_to_tensor(self.weight)

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        """Its shape and the compute dtype."""
        return keras.KerasTensor(self.shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {**super().get_config(), "shape": self.shape}
