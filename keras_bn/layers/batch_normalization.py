"""The batch normalization layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import constraints, initializers, ops, regularizers

from keras_bn import kernels
from keras_bn._keras import stored_as_batch_normalization, uncast_value
from keras_bn.errors import KerasBNError
from keras_bn.kernels.general import normalized
from keras_bn.layers.arguments import (
    check_several_values,
    check_unused,
    checked_axis,
    checked_epsilon,
    checked_flag,
    checked_momentum,
    without_other_arguments,
)
from keras_bn.layers.preparation import has_one_way_to_be_called, needs_no_preparation
from keras_bn.statistics import replicas, running
from keras_bn.statistics.moments import Moments, aligned_mask, batch_moments


@keras.saving.register_keras_serializable(package="keras_bn")
class BatchNormalization(keras.layers.Layer):
    """Normalizes each channel, by the moments of the batch in training and of the population at inference.

    In training, mean and variance are taken over every axis of the batch but `axis` (Ioffe and Szegedy,
    1502.03167, algorithm 1):

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta
        moving_mean     = momentum * moving_mean     + (1 - momentum) * mean
        moving_variance = momentum * moving_variance + (1 - momentum) * variance * m / (m - 1)

    m is the number of values per channel, batch size times positions. At inference, each value takes one
    multiplication and one addition:

        y = x * scale + offset,  scale = gamma / sqrt(moving_variance + epsilon),
                                 offset = beta - moving_mean * scale

    Note: As in Keras, `trainable = False` also means inference mode. To continue training gamma and beta with
    fixed population statistics, set `frozen_statistics = True` instead.

    Compared with Keras: The moving variance is the unbiased one, as in section 3.1 of the paper, in PyTorch
    and in the fused layer of tf_keras. `unbiased_variance=False` gives the biased one of Keras 3.

    Compared with PyTorch: momentum is Keras's, the fraction of the *old* value that is kept. PyTorch's is one
    minus it.

    The weights are gamma, beta, moving_mean and moving_variance, of shape `(channels,)`, in that order. They
    are those of Keras's layer, and weights files fit both layers. With momentum None there is a fifth,
    batches_seen, of the same shape. Weights saved by Keras load and count as one batch, and Keras's layer
    takes `layer.get_weights()[:-1]`. The legacy `.h5` format holds the first four only.

    Args:
        axis: Channel axis, any one axis of inputs of rank 2 or more.
        momentum: Fraction of the moving averages that is kept in each step, in [0, 1). If None, the
            cumulative average is taken, in which every batch weighs the same.
        epsilon: Number added to the variance, in [1e-30, 1e30]. Outside of it float32 overflows.
        center: If True, add a learned offset, beta.
        scale: If True, multiply by a learned scale, gamma.
        beta_initializer: Initializer of beta.
        gamma_initializer: Initializer of gamma.
        moving_mean_initializer: Initializer of moving_mean.
        moving_variance_initializer: Initializer of moving_variance.
        beta_regularizer: Regularizer of beta.
        gamma_regularizer: Regularizer of gamma.
        beta_constraint: Constraint on beta.
        gamma_constraint: Constraint on gamma.
        synchronized: If True, the moments are those of the batches of all replicas, each weighted by its
            count, also under a mask. With TensorFlow the replicas are those of a `tf.distribute` strategy,
            with PyTorch the processes of the default group of `torch.distributed`. With JAX the moments of a
            sharded batch are those of the whole batch in any case.
        unbiased_variance: If True, the moving variance averages the unbiased variance of the batches.
        frozen_statistics: If True, normalize by the population statistics in training too, and do not update
            them.
        **kwargs: Arguments of every Keras layer, such as name and dtype.

    Call arguments:
        inputs: Floating-point tensor of rank 2 or more. 16-bit inputs are normalized with statistics in
            float32.
        training: If True, normalize by the moments of this batch and update the population statistics.
        mask: Boolean tensor. In training only values under True count for the moments. It broadcasts to the
            inputs, or it has the shape `inputs.shape[:-1]`, as in Keras's layer, or it has the first of the
            axes that are not the channels. All values are normalized, masked or not, and have gradients: a
            NaN under a mask is one in the outputs and in the gradients of its channel. A batch that is masked
            entirely changes no statistics.

    Returns:
        A tensor of the shape of the inputs, in the compute dtype of the layer.

    Raises:
        KerasBNError: (a ValueError) If an argument is out of its range or belongs to another layer; if a
            regularizer or constraint is given for a weight that center or scale leaves out; if the inputs are
            not floating-point; if the mask does not fit; if in training the static shape says that there is
            a single value per channel, which has no variance. Where only the data says so, the variance is
            0 and nothing is NaN.

    >>> layer = BatchNormalization(momentum=0.0)
    >>> y = layer(np.array([[1.0, 10.0], [3.0, 30.0]], "float32"), training=True)
    >>> np.round(layer.get_weights()[3], 4)  # the unbiased variances
    array([  2., 200.], dtype=float32)
    """

    # Whether the moving variance is updated through an average of sqrt(variance + epsilon).
    _averages_deviation = False

    def __init__(
        self,
        axis: int = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        synchronized: bool = False,
        unbiased_variance: bool = True,
        frozen_statistics: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**without_other_arguments(kwargs))
        self.axis = checked_axis(axis, self.name)
        self.momentum = checked_momentum(momentum, self.name)
        self.epsilon = checked_epsilon(epsilon, self.name)
        self.center = checked_flag(center, "center", self.name)
        self.scale = checked_flag(scale, "scale", self.name)
        if not self.center:
            check_unused("center", "beta", beta_regularizer, beta_constraint, self.name)
        if not self.scale:
            check_unused("scale", "gamma", gamma_regularizer, gamma_constraint, self.name)
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.synchronized = checked_flag(synchronized, "synchronized", self.name)
        self.unbiased_variance = checked_flag(unbiased_variance, "unbiased_variance", self.name)
        self.frozen_statistics = checked_flag(frozen_statistics, "frozen_statistics", self.name)
        self.supports_masking = True
        if self.synchronized and keras.backend.backend() not in replicas.BACKENDS:
            raise KerasBNError(
                f"Layer {self.name!r}: synchronized=True needs the TensorFlow, PyTorch or JAX backend, but "
                f"the backend is {keras.backend.backend()!r}; leave it False."
            )
        self.gamma: Any = None
        self.beta: Any = None
        self.batches_seen: Any = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights gamma, beta, moving_mean, moving_variance and, if cumulative, batches_seen."""
        channels = self._checked_channels(input_shape)
        self._add_weights(channels, statistics_shape=(channels,))

    def _checked_channels(self, input_shape: tuple[int | None, ...]) -> int:
        rank = len(input_shape)
        if rank < 2 or not -rank <= self.axis < rank:
            raise KerasBNError(
                f"Layer {self.name!r}: axis {self.axis} is out of range for inputs of shape "
                f"{tuple(input_shape)}; they need a rank of 2 or more and the axis must be one of theirs."
            )
        channels = input_shape[self.axis]
        if channels is None:
            raise KerasBNError(
                f"Layer {self.name!r}: the length of axis {self.axis} must be known, but the inputs have "
                f"shape {tuple(input_shape)}."
            )
        self.input_spec = keras.layers.InputSpec(ndim=rank, axes={self.axis % rank: channels})
        return channels

    def _add_weights(self, channels: int, statistics_shape: tuple[int, ...]) -> None:
        self._channels = channels
        if self.scale:
            self.gamma = self._add_vector(
                "gamma", self.gamma_initializer, self.gamma_regularizer, self.gamma_constraint
            )
        if self.center:
            self.beta = self._add_vector(
                "beta", self.beta_initializer, self.beta_regularizer, self.beta_constraint
            )
        self.moving_mean, self.moving_variance = (
            self.add_weight(
                shape=statistics_shape,
                initializer=initializer,
                dtype=self.statistics_dtype,
                trainable=False,
                autocast=False,
                aggregation="mean",
                name=name,
            )
            for name, initializer in (
                ("moving_mean", self.moving_mean_initializer),
                ("moving_variance", self.moving_variance_initializer),
            )
        )
        if self.momentum is None:
            self.batches_seen = self._add_counter("batches_seen", statistics_shape)

    def _add_vector(self, name: str, initializer: Any, regularizer: Any, constraint: Any) -> keras.Variable:
        return self.add_weight(
            shape=(self._channels,),
            initializer=initializer,
            dtype=self.statistics_dtype,
            autocast=False,
            regularizer=regularizer,
            constraint=constraint,
            name=name,
        )

    def _add_counter(self, name: str, shape: tuple[int, ...] = ()) -> keras.Variable:
        return self.add_weight(
            shape=shape,
            initializer="zeros",
            dtype="int32",
            trainable=False,
            aggregation="only_first_replica",
            name=name,
        )

    @property
    def statistics_dtype(self) -> str:
        """The dtype of the four weights and of the arithmetic: float32, or float64 in a float64 layer."""
        return "float64" if "float64" in (self.variable_dtype, self.compute_dtype) else "float32"

    if keras.backend.backend() == "torch":

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """As of every layer, without preparing the arguments where there is nothing to prepare."""
            if type(self) is BatchNormalization and needs_no_preparation(self, args, kwargs):
                return super(keras.layers.Layer, self).__call__(*args, **kwargs)
            return super().__call__(*args, **kwargs)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """What PyTorch calls between its hooks: `call`, without choosing it where there is no choice."""
            if has_one_way_to_be_called(self, args):
                try:
                    return self.call(*args, **kwargs)
                except KerasBNError:
                    # Nothing has changed. Keras raises it again, with the arguments in its message.
                    pass
            return super().forward(*args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Choose the path: training needs `training`, `trainable` and statistics that are not frozen."""
        self._check_floating(inputs)
        if training and self.trainable and not self.frozen_statistics:
            return self.call_training(inputs, mask)
        return self.call_inference(inputs)

    def call_training(self, inputs: Any, mask: Any = None) -> Any:
        """Normalize by the moments of this batch and update the population statistics with them."""
        shape = tuple(inputs.shape)
        check_several_values(shape, self.axis, self.name)
        if mask is not None:
            mask = aligned_mask(ops.convert_to_tensor(mask), shape, self.axis)
        outputs, moments = self._normalize_batch(inputs, mask)
        self._update_statistics(moments)
        return ops.cast(outputs, self.compute_dtype)

    def _normalize_batch(self, inputs: Any, mask: Any) -> tuple[Any, Moments]:
        """Normalized inputs, and the moments that the population statistics are updated with.

        This is what variants override. The moments have the shape of moving_mean; where their count is 0,
        nothing is updated.
        """
        gamma, beta = self._gamma_and_beta()
        if not (self.synchronized and replicas.exist()):
            return kernels.batch_norm(inputs, gamma, beta, self.epsilon, self.axis, mask)
        x = ops.cast(inputs, self.statistics_dtype)
        moments = replicas.together(batch_moments(x, self.axis, mask))
        return normalized(x, moments, self.axis, gamma, beta, self.epsilon), moments

    def _update_statistics(self, moments: Moments) -> None:
        running.update(
            self.moving_mean,
            self.moving_variance,
            moments,
            self.momentum,
            self.batches_seen,
            self.unbiased_variance,
            self.epsilon if self._averages_deviation else None,
        )

    def call_inference(self, inputs: Any) -> Any:
        """Normalize by the population statistics; no state is changed."""
        return ops.cast(kernels.affine(inputs, *self.inference_affine(), self.axis), self.compute_dtype)

    def inference_affine(self) -> tuple[Any, Any]:
        """Scale and offset of inference, two (channels,) tensors: y = x * scale + offset.

        They are exactly 1 and 0 where gamma is sqrt(moving_variance + epsilon) and beta is moving_mean.
        """
        statistics = uncast_value(self.moving_mean), uncast_value(self.moving_variance)
        return kernels.scale_and_offset(*self._gamma_and_beta(), *statistics, self.epsilon)

    def _gamma_and_beta(self) -> tuple[Any, Any]:
        """gamma and beta, or ones and zeros where there are none, as tensors of shape (channels,)."""
        shape = (self._channels,)
        gamma = ops.ones(shape, self.statistics_dtype) if self.gamma is None else uncast_value(self.gamma)
        beta = ops.zeros(shape, self.statistics_dtype) if self.beta is None else uncast_value(self.beta)
        return gamma, beta

    def _check_floating(self, inputs: Any) -> None:
        if not keras.backend.is_float_dtype(inputs.dtype):
            raise KerasBNError(
                f"Layer {self.name!r}: inputs are {keras.backend.standardize_dtype(inputs.dtype)}, but only "
                f"floating-point values can be normalized; cast them first."
            )

    def _training_state(self) -> list[tuple[keras.Variable, int]]:
        """Weights that Keras's layer lacks, each with its value where a file does not have it."""
        # Not 0, with which the next batch would replace what was loaded.
        return [] if self.batches_seen is None else [(self.batches_seen, 1)]

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        """Those that Keras's layer has too, which are what the legacy `.h5` format holds.

        That format counts weights and offers no other way to load files of Keras's layer.
        """
        own = {id(variable) for variable, _ in self._training_state()}
        return [weight for weight in super().non_trainable_weights if id(weight) not in own]

    def finalize_state(self) -> None:
        """Keras calls it after loading weights in the legacy `.h5` format."""
        for variable, value in self._training_state():
            variable.assign(ops.full(variable.shape, value, variable.dtype))

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Load weights, also those of Keras's layer, whose averages count as one batch."""
        missing = {id(variable): value for variable, value in self._training_state()}
        stored = {**store} or stored_as_batch_normalization(store)
        values = {key: np.asarray(value) for key, value in stored.items()}
        for index, variable in enumerate(self.variables):
            key = str(index)
            if values and key not in values and id(variable) in missing:
                values[key] = np.array(missing[id(variable)])
            # Equal statistics of all rows or channels may be stored once.
            if key in values and values[key].ndim < len(variable.shape):
                values[key] = np.broadcast_to(values[key], variable.shape)
        super().load_own_variables(values)

    def compute_output_spec(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Shape of the inputs, dtype of the computation."""
        self._check_floating(inputs)
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {
            **super().get_config(),
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "moving_mean_initializer": initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": initializers.serialize(self.moving_variance_initializer),
            "beta_regularizer": regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": constraints.serialize(self.beta_constraint),
            "gamma_constraint": constraints.serialize(self.gamma_constraint),
            "synchronized": self.synchronized,
            "unbiased_variance": self.unbiased_variance,
            "frozen_statistics": self.frozen_statistics,
        }
