"""Batch normalization of sequences, with statistics for each time step (Cooijmans et al., 1603.09025)."""

from typing import Any

import keras
from keras import ops

from keras_bn.errors import KerasBNError
from keras_bn.layers.arguments import checked_size
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.statistics import running
from keras_bn.statistics.moments import Moments, along, batch_moments


@keras.saving.register_keras_serializable(package="keras_bn")
class SequenceBatchNormalization(BatchNormalization):
    """Batch normalization with separate statistics for each time step, for what feeds recurrent layers.

    For inputs of shape (batch, time, ..., channels): step t of a batch is normalized by the moments of step t
    over the batch, and moving_mean and moving_variance have shape (max_steps, channels). gamma and beta are
    shared by all steps (Cooijmans et al., 1603.09025, section 3: statistics of the first steps differ from
    the later ones', and sharing them hurts). Inference uses row min(t, max_steps - 1) for step t.

    Sequences of different lengths need a mask, which an `Embedding(mask_zero=True)` or a `Masking` layer
    provides: a step then learns from the sequences that reach it, and a step that none reaches, or a padded
    one, changes nothing. The trap: a step that a single sequence reaches is normalized to beta, and rows that
    no training sequence reaches stay as initialized, so let max_steps be a length that many reach.

    `BatchNormalization` itself normalizes sequences by moments over batch and time, masks included.

    Args:
        max_steps: how many time steps have statistics of their own, at least 1.
        **kwargs: as of `BatchNormalization`. The channels are on the last axis; no `synchronized`.

    Raises:
        KerasBNError: max_steps is below 1, synchronized is set, or the inputs have fewer than three axes or
            their channels elsewhere than last.

    >>> from keras import layers
    >>> model = keras.Sequential([
    ...     keras.Input((None,), dtype="int32"),
    ...     layers.Embedding(100, 8, mask_zero=True),
    ...     SequenceBatchNormalization(max_steps=12),
    ...     layers.LSTM(16),
    ... ])
    >>> tuple(model(np.array([[3, 1, 4, 0], [1, 5, 0, 0]])).shape)
    (2, 16)
    """

    def __init__(self, max_steps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_steps = checked_size(max_steps, "max_steps", self.name)
        if self.synchronized:
            raise KerasBNError(
                f"Layer {self.name!r}: replicas may hold sequences of different lengths, so statistics for "
                f"each time step cannot be synchronized; leave synchronized False."
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights of `BatchNormalization`, with a row of statistics for each step."""
        rank = len(input_shape)
        if rank < 3 or self.axis not in (-1, rank - 1):
            raise KerasBNError(
                f"Layer {self.name!r}: the inputs must be (batch, time, ..., channels), but they have shape "
                f"{tuple(input_shape)} with the channels on axis {self.axis}."
            )
        super().build(input_shape)

    def statistics_shape(self, channels: int) -> tuple[int, ...]:
        """A row of channels for each step."""
        return (self.max_steps, channels)

    def normalize_batch(self, inputs: Any, mask: Any) -> tuple[Any, Moments]:
        """Normalize every time step by its own moments."""
        x = ops.cast(inputs, self.statistics_dtype)
        kept = self._kept(x)
        moments = batch_moments(x, kept, mask)
        return self.normalize(x, moments, kept, *self.affine_weights()), moments

    def call_inference(self, inputs: Any) -> Any:
        """Normalize step t by the population statistics of row min(t, max_steps - 1)."""
        x = ops.cast(inputs, self.statistics_dtype)
        rows = ops.minimum(ops.arange(ops.shape(x)[1]), self.max_steps - 1)
        scale, offset = (
            along(ops.take(v, rows, axis=0), len(x.shape), self._kept(x)) for v in self.inference_affine()
        )
        return ops.cast(x * scale + offset, self.compute_dtype)

    def update_statistics(self, moments: Moments) -> None:
        """Move the rows of the steps that this batch has."""
        count = ops.broadcast_to(moments.count, ops.shape(moments.mean))
        running.update(
            self.moving_mean,
            self.moving_variance,
            Moments(*map(self._as_rows, moments._replace(count=count))),
            self.momentum,
            self.batches_seen,
            self.unbiased_variance,
        )

    def _as_rows(self, steps: Any) -> Any:
        """(time, channels) cut or padded with zeros, also in the count, to (max_steps, channels)."""
        padding = ops.zeros((self.max_steps, self._channels), self.statistics_dtype)
        return ops.concatenate([steps, padding])[: self.max_steps]

    def _kept(self, x: Any) -> tuple[int, int]:
        return (1, len(x.shape) - 1)

    def check_count(self, shape: tuple[int | None, ...]) -> None:
        """Refuse batches with one value per step and channel."""
        super().check_count((shape[0], 1, *shape[2:]))

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {**super().get_config(), "max_steps": self.max_steps}
