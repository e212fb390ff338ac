"""A convolution or dense layer and the batch normalization after it, computed as one operation."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_bn._keras import variables_read_as
from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.linear import KINDS, channel_axis, vector_shape

BATCH = 32  # examples in a batch of unknown size


@keras.saving.register_keras_serializable(package="keras_bn")
class JoinedBatchNormalization(keras.layers.Layer):
    """A convolution or dense layer and a frozen BN layer after it, computed as one operation.

    `keras_bn.freeze` creates this layer. With population statistics, BN is z * scale + offset, where scale =
    gamma / sqrt(moving_variance + epsilon) and offset = beta - moving_mean * scale. After z = W x + b, the
    two are one layer with other weights:

        y = (W * scale) x + (b * scale + offset)

    W * scale is computed again in every step, in training as well as at inference, and W, b, gamma and beta
    remain the trained weights. So the outputs and the gradients are those of the two layers, up to rounding,
    but z is neither computed nor stored for the gradients ("tune mode", 2305.11624). The moving mean
    and variance never change.

    Note: If W has more values than the outputs, as in the last convolutions of a network and in wide dense
    layers, scaling W would cost more than it saves. Then the two layers are computed one after the other. A
    batch whose size is not known when the model is traced counts as 32 examples.

    Under a 16-bit policy, W * scale is computed in float32 and rounded once, which is more accurate than
    rounding z.

    Args:
        layer: A Dense layer or a convolution (Conv1D, Conv2D, Conv3D, also grouped, transposed, depthwise or
            separable) without an activation and an activity regularizer.
        normalization: The BN layer, Keras's or ours, over the channels of `layer`.
        pair: Number of the `AbsorbedBatchNormalization` that `keras_bn.freeze` put in the place of
            `normalization`. None if there is none.
        **kwargs: Arguments of every Keras layer. By default, the name is that of `normalization` and the
            dtype policy is that of `layer`.

    The weights are those of `layer`, followed by those of `normalization`. Regularizers and constraints apply
    to these weights, for example to W and not to W * scale.

    Raises:
        KerasBNError: If `layer` is of another class or has an activation or activity regularizer; if
            `normalization` is not a BN layer; or, when built, if it normalizes another axis.

    >>> conv = keras.layers.Conv2D(8, 3, use_bias=False)
    >>> layer = JoinedBatchNormalization(conv, keras.layers.BatchNormalization())
    >>> tuple(layer(np.ones((1, 5, 5, 3), "float32")).shape)
    (1, 3, 3, 8)
    >>> [weight.name for weight in layer.trainable_weights]
    ['kernel', 'gamma', 'beta']
    """

    frozen_statistics = True

    def __init__(
        self, layer: keras.Layer, normalization: keras.Layer, pair: int | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("name", normalization.name)
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(**kwargs)
        if type(layer) not in KINDS:
            raise KerasBNError(
                f"Layer {self.name!r}: layer must be a convolution or a Dense layer of Keras, but it is a "
                f"{type(layer).__name__}."
            )
        if layer.activation is not keras.activations.linear or layer.activity_regularizer is not None:
            raise KerasBNError(
                f"Layer {self.name!r}: {layer.name!r} has an activation or an activity regularizer, which "
                "stands between it and the normalization; leave it out, or make it a layer of its own."
            )
        if not isinstance(normalization, (keras.layers.BatchNormalization, BatchNormalization)):
            raise KerasBNError(
                f"Layer {self.name!r}: normalization must be a BatchNormalization, Keras's or keras_bn's, "
                f"but it is a {type(normalization).__name__}."
            )
        self.layer = layer
        self.normalization = normalization
        self.pair = pair
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights of both layers."""
        if not self.layer.built:
            self.layer.build(input_shape)
        shape = self.compute_output_shape(input_shape)
        axis = channel_axis(self.layer, len(shape))
        if self.normalization.axis % len(shape) != axis:
            raise KerasBNError(
                f"Layer {self.name!r}: the normalization has axis {self.normalization.axis}, but the "
                f"channels of {self.layer.name!r} are on axis {axis}."
            )
        if not self.normalization.built:
            self.normalization.build(shape)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Fold the normalization into the weights and apply them. `training` makes no difference."""
        if not self._pays(inputs):
            outputs = self.normalization(self.layer(inputs), training=False)
            return ops.cast(outputs, self.normalization.compute_dtype)
        with variables_read_as(self.layer.variable_dtype):
            weights, offset = self._folded()
        # All of the weights, not only those that change: the scope hides what an outer one says of them.
        with keras.StatelessScope(weights, initialize_variables=False):
            outputs = self.layer(inputs)
        if not self.layer.use_bias:
            outputs = self._plus(outputs, offset)
        return ops.cast(outputs, self.normalization.compute_dtype)

    def _pays(self, inputs: Any) -> bool:
        """Whether scaling the kernel is less work than scaling the outputs, which are also stored."""
        # An open length is None, or a symbol where JAX finds the shape of the outputs.
        shape = tuple(length if isinstance(length, int) else None for length in inputs.shape)
        batch, *example = self.compute_output_shape(shape)
        known = [length for length in example if length is not None]
        if len(known) < len(example):
            return True
        return math.prod(self.layer.weights[self._kernel].shape) <= (batch or BATCH) * math.prod(known)

    @property
    def _kernel(self) -> int:
        """The position of the kernel over the output channels among the layer's weights."""
        return len(self.layer.weights) - 1 - bool(self.layer.use_bias)

    def _folded(self) -> tuple[list[tuple[keras.Variable, Any]], Any]:
        """The weights of the layer with their values, scaled and shifted, and the offset."""
        scale, offset = population_affine(self.normalization)
        weights = self.layer.weights
        values = [ops.convert_to_tensor(weight) for weight in weights]
        if self.layer.use_bias:
            values[-1] = ops.cast(values[-1], scale.dtype) * scale + offset
        scale = ops.reshape(scale, vector_shape(self.layer))
        values[self._kernel] = ops.cast(values[self._kernel], scale.dtype) * scale
        return [(w, ops.cast(v, w.dtype)) for w, v in zip(weights, values, strict=True)], offset

    def _plus(self, outputs: Any, offset: Any) -> Any:
        offset = ops.cast(offset, outputs.dtype)
        rank = len(outputs.shape)
        if channel_axis(self.layer, rank) == rank - 1:
            return ops.add(outputs, offset)  # TensorFlow's bias_add, which is fused with the convolution
        return outputs + ops.reshape(offset, (-1,) + (1,) * (rank - 2))

    def compute_output_spec(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Shape of the layer's outputs, dtype of the normalization's."""
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self.normalization.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the layer's outputs."""
        return tuple(self.layer.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        """Both layers, serialized, and the number of the pair."""
        layers = {"layer": self.layer, "normalization": self.normalization}
        serialized = {name: keras.saving.serialize_keras_object(layer) for name, layer in layers.items()}
        return {**super().get_config(), **serialized, "pair": self.pair}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> JoinedBatchNormalization:
        """Create the layer from a configuration."""
        layers = {
            name: keras.saving.deserialize_keras_object(config[name]) for name in ("layer", "normalization")
        }
        return cls(**config | layers)


@keras.saving.register_keras_serializable(package="keras_bn")
class AbsorbedBatchNormalization(keras.layers.Layer):
    """Returns its inputs. It stands for a BN layer that the `JoinedBatchNormalization` before it computes.

    `keras_bn.freeze` creates it where the code of a custom layer or model calls the two layers, and
    `keras_bn.unfreeze` puts the BN layer back in its place.

    Args:
        pair: Number that it shares with its `JoinedBatchNormalization`.
        **kwargs: Arguments of every Keras layer. The name is that of the BN layer.

    >>> tuple(AbsorbedBatchNormalization(pair=0)(np.ones((1, 2))).shape)
    (1, 2)
    """

    def __init__(self, pair: int, **kwargs: Any) -> None:
        super().__init__(**kwargs, autocast=False)
        self.pair = pair
        self.supports_masking = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The inputs; `training` and `mask`, which BN takes, make no difference."""
        return inputs

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {**super().get_config(), "pair": self.pair}


def population_affine(normalization: Any) -> tuple[Any, Any]:
    """Scale and offset by which a BN layer, Keras's or ours, normalizes at inference, `(channels,)` each."""
    if isinstance(normalization, BatchNormalization):
        return normalization.inference_affine()
    dtype = "float64" if normalization.variable_dtype == "float64" else "float32"
    gamma, beta, mean, variance = (
        None if weight is None else ops.cast(ops.convert_to_tensor(weight), dtype)
        for weight in (
            normalization.gamma,
            normalization.beta,
            normalization.moving_mean,
            normalization.moving_variance,
        )
    )
    scale = ops.rsqrt(variance + normalization.epsilon)
    scale = scale if gamma is None else gamma * scale
    shift = mean * scale
    return scale, -shift if beta is None else beta - shift
