"""Cross-iteration batch normalization (Yao et al., 2002.05712): moments from recent iterations too."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_bn.errors import KerasBNError
from keras_bn.kernels.general import normalized
from keras_bn.layers.arguments import check_several_values, checked_size
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.derivatives import SUPPORTED, vjp
from keras_bn.layers.linear import CONVOLUTIONS
from keras_bn.statistics.moments import Moments, batch_moments


@keras.saving.register_keras_serializable(package="keras_bn")
class CrossIterationNormalization(keras.layers.Layer):
    """A linear layer followed by batch normalization with the moments of the last few iterations.

    It is for tiny batches. The mean and mean square of an earlier batch were those of other weights w'. They
    are carried over to the present weights w by their first-order expansion (2002.05712, equations 5 and 6),
    in which only the weights of the layer just before are considered:

        mean_i(w) = mean_i(w') + d mean_i / dw' · (w - w'),   square_i(w) likewise

    With the present batch as i = 0 and k = min(window, iterations so far), training normalizes by

        mean = Σ mean_i / k,   variance = Σ max(square_i, mean_i²) / k - mean²

    (equations 7 to 9). The gradient goes through the present batch's share. The population statistics are
    updated with the present batch alone. Inference is that of `BatchNormalization` after `layer`.

    Note: The variance is computed from mean squares, so it is inaccurate if the mean is much larger than the
        deviation.

    Args:
        layer: A Dense, Conv1D, Conv2D or Conv3D layer without bias and activation. Normalization would undo
            the bias, and the activation belongs after it.
        window: Number of iterations whose moments are used, at least 1, which is plain batch normalization.
        burn_in: Number of iterations of plain batch normalization at the start, while weights change fast.
        normalization: A `BatchNormalization` with the desired options. If None, one with the default options.
        **kwargs: Arguments of every Keras layer, such as name and dtype.

    Raises:
        KerasBNError: If the layer is of another kind, has a bias, an activation or an activity regularizer,
            or puts channels elsewhere than last; if window or burn_in is out of range; if the backend has no
            derivatives.

    >>> dense = keras.layers.Dense(4, use_bias=False)
    >>> layer = CrossIterationNormalization(dense, window=4)
    >>> tuple(layer(np.ones((2, 3), "float32"), training=True).shape)
    (2, 4)
    """

    def __init__(
        self,
        layer: keras.Layer,
        window: int = 4,
        burn_in: int = 0,
        normalization: BatchNormalization | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.window = checked_size(window, "window", self.name)
        self.burn_in = checked_size(burn_in, "burn_in", self.name, least=0)
        self.layer = layer
        self.normalization = normalization or BatchNormalization(dtype=self.dtype_policy)
        if (
            type(layer) not in (keras.layers.Dense, *CONVOLUTIONS)
            or layer.use_bias
            or layer.activation is not keras.activations.linear
            or layer.activity_regularizer is not None
            or getattr(layer, "data_format", "channels_last") != "channels_last"
        ):
            raise KerasBNError(
                f"Layer {self.name!r}: it wraps a Dense or Conv layer with use_bias=False, no activation, no "
                f"activity_regularizer and channels last, which {getattr(layer, 'name', layer)!r} is not."
            )
        if keras.backend.backend() not in SUPPORTED:
            raise KerasBNError(
                f"Layer {self.name!r}: it needs derivatives, which the backend {keras.backend.backend()!r} "
                f"does not have; use one of {', '.join(SUPPORTED)}."
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Build both layers, and create the memory of the last iterations."""
        if not self.layer.built:
            self.layer.build(input_shape)
        if not self.normalization.built:
            self.normalization.build(self.layer.compute_output_shape(input_shape))
        kernel = tuple(self.layer.kernel.shape)
        past = self.window - 1
        # A moment at weights w is constant + slope · w; row 0 is of the iteration before.
        self.constants = self._add_memory("constants", (2, past, kernel[-1]))
        self.slopes = self._add_memory("slopes", (2, past, *kernel))
        self.iterations = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="iterations"
        )

    def _add_memory(self, name: str, shape: tuple[int, ...]) -> keras.Variable:
        dtype = self.normalization.statistics_dtype
        return self.add_weight(
            shape=shape, initializer="zeros", dtype=dtype, trainable=False, autocast=False, name=name
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The layer, then batch normalization."""
        bn = self.normalization
        if not (training and bn.trainable and not bn.frozen_statistics):
            return bn(self.layer(inputs), training=False)
        return self.call_training(inputs)

    def call_training(self, inputs: Any) -> Any:
        """Normalize by the moments of the window, learn from those of this batch, remember them."""
        bn, dtype = self.normalization, self.normalization.statistics_dtype
        output_shape = tuple(self.layer.compute_output_shape(tuple(inputs.shape)))
        check_several_values(output_shape, -1, self.name)

        def moments(kernel: Any) -> tuple[Any, tuple[Any, Moments]]:
            with keras.StatelessScope(state_mapping=[(self.layer.kernel, kernel)]):
                x = ops.cast(self.layer(inputs), dtype)
            own = batch_moments(x, -1)
            return ops.stack([own.mean, own.variance + ops.square(own.mean)]), (x, own)

        weights = ops.cast(self.layer.kernel.value, dtype)
        present, pull, (x, own) = vjp(moments, weights)
        # A channel's moments depend on that channel's weights alone, so the sum's derivative has them all.
        rows = ops.eye(2, dtype=dtype)[:, :, None] * ops.ones_like(present)
        slopes = ops.stack([pull(rows[0]), pull(rows[1])])
        mean, square = self._window(present, weights)
        variance = ops.maximum(square - ops.square(mean), 0)
        of_window = Moments(own.count, mean, variance)
        y = normalized(x, of_window, -1, *bn._gamma_and_beta(), bn.epsilon)
        bn._update_statistics(own)
        self._remember(ops.stop_gradient(present), ops.stop_gradient(slopes), ops.stop_gradient(weights))
        return ops.cast(y, self.compute_dtype)

    def _window(self, present: Any, weights: Any) -> tuple[Any, Any]:
        """Mean and mean square over the iterations that count, at the present weights."""
        past = self.constants + _projected(self.slopes, ops.stop_gradient(weights))
        moments = ops.concatenate([present[:, None], past], axis=1)
        means, squares = moments[0], ops.maximum(moments[1], ops.square(moments[0]))
        used = ops.where(self.iterations < self.burn_in, 0, ops.minimum(self.iterations, self.window - 1))
        counts = (ops.arange(self.window) <= used)[:, None]
        number = ops.cast(used + 1, means.dtype)
        mean, square = (ops.sum(ops.where(counts, v, 0), 0) / number for v in (means, squares))
        return mean, square

    def _remember(self, moments: Any, slopes: Any, weights: Any) -> None:
        constants = moments - _projected(slopes, weights)
        for memory, latest in ((self.constants, constants), (self.slopes, slopes)):
            memory.assign(ops.concatenate([latest[:, None], memory.value], axis=1)[:, : self.window - 1])
        self.iterations.assign(self.iterations.value + 1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the wrapped layer's outputs."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "window": self.window,
            "burn_in": self.burn_in,
            "normalization": keras.saving.serialize_keras_object(self.normalization),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CrossIterationNormalization:
        """The inverse of `get_config`."""
        inner = {
            name: keras.saving.deserialize_keras_object(config[name]) for name in ("layer", "normalization")
        }
        return cls(**{**config, **inner})


def _projected(slopes: Any, weights: Any) -> Any:
    """slope · w per channel: a sum over every axis of the kernel but the last."""
    product = slopes * weights
    rank = len(weights.shape)
    return ops.sum(product, tuple(range(-rank, -1)))
