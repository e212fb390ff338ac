"""Ghost batch normalization (Hoffer, Hubara and Soudry, 1705.08741)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_bn.errors import KerasBNError
from keras_bn.kernels.general import normalized
from keras_bn.layers.arguments import check_several_values, checked_size
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.statistics import replicas
from keras_bn.statistics.moments import Moments, batch_moments, merged


@keras.saving.register_keras_serializable(package="keras_bn")
class GhostBatchNormalization(BatchNormalization):
    """Batch normalization of slices of a large batch, each by its own moments, which have more noise.

    In training the examples are cut, in order, into ghost batches of `virtual_batch_size`, the last of which
    may be shorter. Each is normalized as `BatchNormalization` would normalize it alone (1705.08741, algorithm
    1). Inference is that of `BatchNormalization`, for a batch of any size. With `synchronized=True` the
    population statistics are updated with the batches of all replicas.

    The population statistics are updated with the moments of the whole batch, those of the ghost batches
    merged by counts. The paper averages over the ghost batches one by one, which for the unbiased variance
    estimates the same value with more noise.

    Compared with tf.keras: Its `virtual_batch_size` averaged the variances of the ghost batches, had to
    divide the batch evenly, and cut batches at inference too.

    Args:
        virtual_batch_size: Number of examples per ghost batch, at least 1. Note: A last ghost batch with a
            single value per channel is normalized to beta.
        **kwargs: Arguments of `BatchNormalization`, except that the axis cannot be that of the examples, 0.

    Raises:
        KerasBNError: If virtual_batch_size is below 1; if axis is 0; if every ghost batch would have one
            value per channel.

    >>> layer = GhostBatchNormalization(virtual_batch_size=2)
    >>> x = np.array([[1.0], [3.0], [100.0], [300.0], [7.0]], "float32")
    >>> np.round(layer(x, training=True), 2).ravel() + 0.0
    array([-1.,  1., -1.,  1.,  0.], dtype=float32)
    """

    def __init__(self, virtual_batch_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.virtual_batch_size = checked_size(virtual_batch_size, "virtual_batch_size", self.name)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights of `BatchNormalization`."""
        if self.axis in (0, -len(input_shape)):
            raise KerasBNError(
                f"Layer {self.name!r}: axis {self.axis} is that of the examples, which are cut into ghost "
                f"batches; the channels must be on another."
            )
        super().build(input_shape)

    def _normalize_batch(self, inputs: Any, mask: Any) -> tuple[Any, Moments]:
        """Normalize every ghost batch by its own moments, and return those of the whole batch."""
        x = ops.cast(inputs, self.statistics_dtype)
        rank, size = len(x.shape), ops.shape(x)[0]
        examples = min(self.virtual_batch_size, x.shape[0] or self.virtual_batch_size)
        check_several_values((examples, *x.shape[1:]), self.axis, self.name)
        ghosts = -(-size // self.virtual_batch_size)
        missing = ghosts * self.virtual_batch_size - size
        evenly = isinstance(missing, int) and missing == 0
        if mask is not None or not evenly:
            real = ops.ones((size,) + (1,) * (rank - 1), "bool")
            mask = self._cut(real if mask is None else ops.logical_and(mask, real), ghosts, missing)
        x = self._cut(x, ghosts, missing)
        kept = (0, self.axis % rank + 1)
        moments = batch_moments(x, kept, mask)
        y = normalized(x, moments, kept, *self._gamma_and_beta(), self.epsilon)
        y = ops.reshape(y, (-1, *ops.shape(inputs)[1:]))[:size]
        count = ops.broadcast_to(moments.count, ops.shape(moments.mean))
        whole = merged(moments._replace(count=count))
        return y, replicas.together(whole) if self.synchronized and replicas.exist() else whole

    def _cut(self, values: Any, ghosts: Any, missing: Any) -> Any:
        """(examples, ...) padded to (ghosts, virtual_batch_size, ...)."""
        rest = ops.shape(values)[1:]
        padding = ops.zeros((missing, *rest), values.dtype)
        return ops.reshape(ops.concatenate([values, padding]), (ghosts, self.virtual_batch_size, *rest))

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {**super().get_config(), "virtual_batch_size": self.virtual_batch_size}
