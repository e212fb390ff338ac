"""Batch normalization over the mini-batches of one accumulated batch: CmBN of YOLOv4 (2004.10934)."""

from typing import Any

import keras
from keras import ops

from keras_bn.errors import KerasBNError
from keras_bn.layers.arguments import checked_size
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.statistics.moments import Moments, across_replicas, along, batch_moments, merged


@keras.saving.register_keras_serializable(package="keras_bn")
class AccumulatedBatchNormalization(BatchNormalization):
    """Batch normalization by the moments of all mini-batches since the last step of the optimizer.

    For an optimizer with `gradient_accumulation_steps=k`, which lets the weights stand still for k
    mini-batches: mini-batch j of the k is normalized by the moments of mini-batches 1 to j together, merged
    by their counts (cross mini-batch normalization, 2004.10934, figure 4). The gradient goes through the
    moments of the current mini-batch alone. The population statistics learn once for each k mini-batches,
    from all of them. Inference is that of `BatchNormalization`.

    The trap: the layer counts its own training calls. Give it the optimizer's k, and start training both
    afresh, or they fall out of step; restored together they stay in step.

    Args:
        accumulation_steps: the optimizer's gradient_accumulation_steps, at least 1.
        **kwargs: as of `BatchNormalization`.

    Weights, after those of `BatchNormalization`: the count, mean and variance so far, each `(channels,)`, and
    the number of mini-batches they are of.

    Raises:
        KerasBNError: accumulation_steps is below 1, or momentum is None.

    >>> layer = AccumulatedBatchNormalization(accumulation_steps=2, momentum=0.0)
    >>> for x in ([[1.0], [3.0]], [[5.0], [7.0]]):
    ...     _ = layer(np.array(x, "float32"), training=True)
    >>> [float(w[0]) for w in layer.get_weights()[2:3]]  # the mean of all four
    [4.0]
    """

    def __init__(self, accumulation_steps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.accumulation_steps = checked_size(accumulation_steps, "accumulation_steps", self.name)
        if self.momentum is None:
            raise KerasBNError(
                f"Layer {self.name!r}: momentum None counts batches of equal weight, which mini-batches of "
                f"one accumulated batch are not; give a number in [0, 1)."
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights of `BatchNormalization` and those of the accumulated moments."""
        super().build(input_shape)
        self.accumulated = Moments(
            *(
                self.add_statistic(f"accumulated_{name}", (self._channels,), "zeros")
                for name in Moments._fields
            )
        )
        self.accumulated_steps = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int32",
            trainable=False,
            aggregation="only_first_replica",
            name="accumulated_steps",
        )

    def normalize_batch(self, inputs: Any, mask: Any) -> tuple[Any, Moments]:
        """Normalize by the moments since the optimizer's last step; return them."""
        x = ops.cast(inputs, self.statistics_dtype)
        current = batch_moments(x, self.axis, mask)
        if self.synchronized:
            current = across_replicas(current)
        current = current._replace(count=ops.broadcast_to(current.count, ops.shape(current.mean)))
        sets = (ops.stack([old.value, new]) for old, new in zip(self.accumulated, current, strict=True))
        moments = merged(Moments(*sets))
        gamma, beta = (along(v, len(x.shape), self.axis) for v in self.affine_weights())
        return self.normalize(x, moments, self.axis, gamma, beta), moments

    def update_statistics(self, moments: Moments) -> None:
        """Keep the moments; after the last mini-batch learn from them and forget them."""
        steps = self.accumulated_steps.value + 1
        done = steps >= self.accumulation_steps
        # A count of zero leaves the population statistics alone.
        super().update_statistics(moments._replace(count=ops.where(done, moments.count, 0)))
        for variable, value in zip(self.accumulated, moments, strict=True):
            variable.assign(ops.where(done, 0, ops.stop_gradient(value)))
        self.accumulated_steps.assign(ops.where(done, 0, steps))

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {**super().get_config(), "accumulation_steps": self.accumulation_steps}
