"""The batch normalization layer."""

from typing import Any

import keras
from keras import constraints, initializers, ops, regularizers

from keras_bn import kernels
from keras_bn.errors import KerasBNError
from keras_bn.layers.arguments import (
    check_unused,
    checked_axis,
    checked_epsilon,
    checked_flag,
    checked_momentum,
)
from keras_bn.statistics import running
from keras_bn.statistics.moments import (
    Moments,
    across_replicas,
    aligned_mask,
    along,
    batch_moments,
    reduction_axes,
)


@keras.saving.register_keras_serializable(package="keras_bn")
class BatchNormalization(keras.layers.Layer):
    """Normalizes each channel, by the batch's moments in training, by the population's at inference.

    Training, with mean and variance over every axis but `axis` of the batch (Ioffe and Szegedy, 1502.03167,
    algorithm 1):

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta
        moving_mean     = momentum * moving_mean     + (1 - momentum) * mean
        moving_variance = momentum * moving_variance + (1 - momentum) * variance * m / (m - 1)

    Inference, one multiplication and one addition per value:

        y = x * scale + offset,  scale = gamma / sqrt(moving_variance + epsilon),
                                 offset = beta - moving_mean * scale

    The trap: `trainable = False` also means inference mode, as in Keras. To keep learning gamma and beta on
    fixed population statistics, set `frozen_statistics = True` instead.

    Rivals: momentum is Keras's, the fraction of the *old* value that is kept; PyTorch's is one minus it. The
    moving variance is the unbiased one (the paper's section 3.1, PyTorch, the fused layer of tf_keras);
    `unbiased_variance=False` gives Keras 3's biased one. m counts the values per channel: batch size times
    positions.

    Weights: gamma, beta, moving_mean and moving_variance, `(channels,)`, as in Keras's layer, and files fit
    both. The exception is momentum None, with the scalar batches_seen as a fifth: Keras's files load, what
    they average counting as one batch, but Keras's layer takes no more than `layer.get_weights()[:-1]`.

    Args:
        axis: the channel axis, any one axis of inputs of rank 2 or more.
        momentum: in [0, 1), or None for the cumulative average, in which every batch weighs the same.
        epsilon: added to the variance, in [1e-30, 1e30]: outside, float32 overflows.
        center: whether there is a beta.
        scale: whether there is a gamma.
        beta_initializer: initializer of beta; likewise for the other three weights.
        gamma_initializer: see beta_initializer.
        moving_mean_initializer: see beta_initializer.
        moving_variance_initializer: see beta_initializer.
        beta_regularizer: regularizer of beta.
        gamma_regularizer: regularizer of gamma.
        beta_constraint: constraint on beta.
        gamma_constraint: constraint on gamma.
        synchronized: take the moments over the batches of all replicas of a `tf.distribute` strategy, each
            weighted by its count, also under a mask. TensorFlow only.
        unbiased_variance: what the moving variance averages.
        frozen_statistics: normalize by the population statistics in training too, and leave them alone.
        **kwargs: of every Keras layer, such as name and dtype.

    Call arguments:
        inputs: floating-point tensor of rank >= 2. 16-bit inputs are normalized with statistics in float32.
        training: whether to use, and learn from, the moments of this batch.
        mask: boolean; in training only values under True count for the moments. It broadcasts to the inputs,
            or has the first of the axes that are not the channels: (batch, time) for (batch, time, channels).
            All values are normalized, masked or not, and have gradients: a NaN under a mask is one in the
            outputs and in the gradients of its channel. A batch masked entirely changes no statistics.

    Raises:
        KerasBNError: (a ValueError) an argument is out of its range; a regularizer or constraint is of a
            weight that center or scale leaves out (its initializer is ignored); the inputs are not
            floating-point; the mask does not fit; in training the static shape says that there is a single
            value per channel, whose variance says nothing. Where only the data says so, the variance is 0
            and nothing is NaN.

    >>> layer = BatchNormalization(momentum=0.0)
    >>> y = layer(np.array([[1.0, 10.0], [3.0, 30.0]], "float32"), training=True)
    >>> np.round(layer.get_weights()[3], 4)  # the unbiased variances
    array([  2., 200.], dtype=float32)
    """

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
        super().__init__(**kwargs)
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
        if self.synchronized and keras.backend.backend() != "tensorflow":
            raise KerasBNError(
                f"Layer {self.name!r}: synchronized=True needs the TensorFlow backend and its tf.distribute "
                f"strategies, but the backend is {keras.backend.backend()!r}; leave it False."
            )
        self.gamma: Any = None
        self.beta: Any = None
        self.batches_seen: Any = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights gamma, beta, moving_mean, moving_variance and, if cumulative, batches_seen."""
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
        self._channels = channels
        if self.scale:
            self.gamma = self._add_vector(
                "gamma", self.gamma_initializer, self.gamma_regularizer, self.gamma_constraint
            )
        if self.center:
            self.beta = self._add_vector(
                "beta", self.beta_initializer, self.beta_regularizer, self.beta_constraint
            )
        shape = self.statistics_shape(channels)
        self.moving_mean = self.add_statistic("moving_mean", shape, self.moving_mean_initializer)
        self.moving_variance = self.add_statistic("moving_variance", shape, self.moving_variance_initializer)
        if self.counts_batches:
            self.batches_seen = self.add_weight(
                shape=(),
                initializer="zeros",
                dtype="int32",
                trainable=False,
                aggregation="only_first_replica",
                name="batches_seen",
            )

    def load_own_variables(self, store: Any) -> None:
        """Load weights, also those of Keras's layer, which do not count batches: then batches_seen is 1."""
        if self.batches_seen is not None:
            # Not 0, with which the next batch would replace what was loaded.
            store = {str(len(self.variables) - 1): 1, **store}
        super().load_own_variables(store)

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

    def add_statistic(self, name: str, shape: tuple[int, ...], initializer: Any) -> keras.Variable:
        """A weight that is not trained; replicas of a `tf.distribute` strategy hold its mean."""
        return self.add_weight(
            shape=shape,
            initializer=initializer,
            dtype=self.statistics_dtype,
            trainable=False,
            autocast=False,
            aggregation="mean",
            name=name,
        )

    def statistics_shape(self, channels: int) -> tuple[int, ...]:
        """The shape of moving_mean and moving_variance."""
        return (channels,)

    @property
    def counts_batches(self) -> bool:
        """Whether there is a weight batches_seen."""
        return self.momentum is None

    @property
    def statistics_dtype(self) -> str:
        """The dtype of the four weights and of the arithmetic: float32, or float64 in a float64 layer."""
        return "float64" if "float64" in (self.variable_dtype, self.compute_dtype) else "float32"

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Choose the path: training needs `training`, `trainable` and statistics that are not frozen."""
        self._check_floating(inputs)
        if training and self.trainable and not self.frozen_statistics:
            return self.call_training(inputs, mask)
        return self.call_inference(inputs)

    def call_training(self, inputs: Any, mask: Any = None) -> Any:
        """Normalize by the moments of this batch and move the population statistics towards them."""
        self.check_count(tuple(inputs.shape))
        if mask is not None:
            mask = aligned_mask(ops.convert_to_tensor(mask), tuple(inputs.shape), self.axis)
        outputs, moments = self.normalize_batch(inputs, mask)
        self.update_statistics(moments)
        return ops.cast(outputs, self.compute_dtype)

    def call_inference(self, inputs: Any) -> Any:
        """Normalize by the population statistics; no state is changed."""
        scale, offset = self.inference_affine()
        rank = len(inputs.shape)
        x = ops.cast(inputs, self.statistics_dtype)
        y = x * along(scale, rank, self.axis) + along(offset, rank, self.axis)
        return ops.cast(y, self.compute_dtype)

    def inference_affine(self) -> tuple[Any, Any]:
        """Scale and offset of inference, two (channels,) tensors: y = x * scale + offset.

        They are exactly 1 and 0 where gamma is sqrt(moving_variance + epsilon) and beta is moving_mean.
        """
        gamma, beta = self.affine_weights()
        deviation = ops.sqrt(self.moving_variance + self.epsilon)
        # The maximum changes no value: it keeps Grappler from replacing gamma / sqrt(v) by gamma * rsqrt(v),
        # which is not correctly rounded and would move a retrofitted layer off the identity.
        scale = gamma / ops.maximum(deviation, 1e-30)
        return scale, beta - self.moving_mean * scale

    def normalize_batch(self, inputs: Any, mask: Any) -> tuple[Any, Moments]:
        """Normalized inputs, and the moments that the population statistics are to learn from."""
        gamma, beta = self.affine_weights()
        if self.has_kernel:
            return kernels.batch_norm(inputs, gamma, beta, self.epsilon, self.axis, mask)
        x = ops.cast(inputs, self.statistics_dtype)
        moments = self.moments(x, mask)
        return self.normalize_by(moments, x, gamma, beta), moments

    @property
    def has_kernel(self) -> bool:
        """Whether `kernels.batch_norm` stands in for `moments` and `normalize_by`."""
        return kernels.AVAILABLE and not self.synchronized

    def moments(self, x: Any, mask: Any) -> Moments:
        """Of the batch, or of all replicas' batches."""
        moments = batch_moments(x, self.axis, mask)
        return across_replicas(moments) if self.synchronized else moments

    def normalize_by(self, moments: Moments, x: Any, gamma: Any, beta: Any) -> Any:
        """x normalized by the moments, gamma and beta of its channels."""
        gamma, beta = (along(v, len(x.shape), self.axis) for v in (gamma, beta))
        return self.normalize(x, moments, self.axis, gamma, beta)

    def normalize(self, x: Any, moments: Moments, kept: int | tuple[int, ...], gamma: Any, beta: Any) -> Any:
        """(x - mean) * gamma / sqrt(variance + epsilon) + beta.

        Mean and variance have the axes `kept` of x; gamma and beta broadcast to x.
        """
        mean, deviation = moments.mean, ops.sqrt(moments.variance + self.epsilon)
        mean, deviation = (along(v, len(x.shape), kept) for v in (mean, deviation))
        return (x - mean) * (gamma / deviation) + beta

    def update_statistics(self, moments: Moments) -> None:
        """Move the population statistics towards the batch's."""
        running.update(
            self.moving_mean,
            self.moving_variance,
            moments,
            self.momentum,
            self.batches_seen,
            self.unbiased_variance,
        )

    def affine_weights(self) -> tuple[Any, Any]:
        """gamma and beta, or ones and zeros where there are none, as tensors of shape (channels,)."""
        shape, dtype = (self._channels,), self.statistics_dtype
        gamma = ops.ones(shape, dtype) if self.gamma is None else self.gamma
        beta = ops.zeros(shape, dtype) if self.beta is None else self.beta
        return ops.convert_to_tensor(gamma), ops.convert_to_tensor(beta)

    def _check_floating(self, inputs: Any) -> None:
        if not keras.backend.is_float_dtype(inputs.dtype):
            raise KerasBNError(
                f"Layer {self.name!r}: inputs are {keras.backend.standardize_dtype(inputs.dtype)}, but only "
                f"floating-point values can be normalized; cast them first."
            )

    def check_count(self, shape: tuple[int | None, ...]) -> None:
        """Refuse to train on inputs whose static shape says that each channel has one value."""
        if all(shape[a] == 1 for a in reduction_axes(len(shape), self.axis)):
            raise KerasBNError(
                f"Layer {self.name!r}: inputs of shape {shape} have one value per channel, so there is no "
                f"variance to normalize by; train on larger batches or set frozen_statistics."
            )

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
