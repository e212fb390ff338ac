"""Batch normalization over the mini-batches of one accumulated batch: CmBN of YOLOv4 (2004.10934)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_bn.errors import KerasBNError
from keras_bn.kernels.general import normalized
from keras_bn.layers.arguments import checked_size
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.statistics import replicas
from keras_bn.statistics.moments import Moments, batch_moments, merged


@keras.saving.register_keras_serializable(package="keras_bn")
class AccumulatedBatchNormalization(BatchNormalization):
    """Batch normalization by the moments of all mini-batches since the last step of the optimizer.

    It is for an optimizer with `gradient_accumulation_steps=k`, which leaves the weights unchanged for k
    mini-batches. Mini-batch j of the k is normalized by the moments of mini-batches 1 to j together, merged
    by their counts (cross mini-batch normalization, 2004.10934, figure 4). The gradient goes through the
    moments of the current mini-batch alone. The population statistics are updated once for every k
    mini-batches, with the moments of all of them. Inference is that of `BatchNormalization`.

    Note: The layer counts its own training calls. Give it the optimizer's k, and start training both from
    the beginning, or they get out of step. Restored together they stay in step.

    Under a `tf.distribute` strategy, each replica accumulates its own mini-batches, and the population
    statistics are the mean over the replicas. With `synchronized=True` all replicas accumulate together.

    Args:
        accumulation_steps: The optimizer's gradient_accumulation_steps, at least 1.
        **kwargs: Arguments of `BatchNormalization`.

    The weights, after those of `BatchNormalization`, are accumulated_count, accumulated_mean and
    accumulated_variance, each of shape `(channels,)`, and the scalar accumulated_steps, the number of
    mini-batches so far.

    Raises:
        KerasBNError: If accumulation_steps is below 1, or momentum is None.

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
        with keras.name_scope(self.name, caller=self):
            self.accumulated = Moments(
                *(
                    keras.Variable(
                        "zeros",
                        (self._channels,),
                        dtype=self.statistics_dtype,
                        trainable=False,
                        autocast=False,
                        # Each replica has its own.
                        aggregation="mean",
                        synchronization="on_read",
                        name=f"accumulated_{name}",
                    )
                    for name in Moments._fields
                )
            )
        self.accumulated_steps = self._add_counter("accumulated_steps")

    def _normalize_batch(self, inputs: Any, mask: Any) -> tuple[Any, Moments]:
        """Normalize by the moments since the optimizer's last step, and keep them until its next one."""
        x = ops.cast(inputs, self.statistics_dtype)
        current = batch_moments(x, self.axis, mask)
        if self.synchronized and replicas.exist():
            current = replicas.together(current)
        current = current._replace(count=ops.broadcast_to(current.count, ops.shape(current.mean)))
        pairs = zip(self.accumulated, current, strict=True)
        moments = merged(Moments(*(ops.stack([old.value, new]) for old, new in pairs)))
        outputs = normalized(x, moments, self.axis, *self._gamma_and_beta(), self.epsilon)
        steps = self.accumulated_steps.value + 1
        done = steps >= self.accumulation_steps
        for variable, value in zip(self.accumulated, moments, strict=True):
            variable.assign(ops.where(done, 0, ops.stop_gradient(value)))
        self.accumulated_steps.assign(ops.where(done, 0, steps))
        return outputs, moments._replace(count=ops.where(done, moments.count, 0))

    def _training_state(self) -> list[tuple[keras.Variable, int]]:
        accumulated = [*self.accumulated, self.accumulated_steps] if self.built else []
        return [*super()._training_state(), *((variable, 0) for variable in accumulated)]

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {**super().get_config(), "accumulation_steps": self.accumulation_steps}
