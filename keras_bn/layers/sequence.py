"""Batch normalization of sequences, with statistics for each time step (Cooijmans et al., 1603.09025)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_bn import kernels
from keras_bn.errors import KerasBNError
from keras_bn.kernels.general import normalized
from keras_bn.layers.arguments import check_several_values, checked_size
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.statistics.moments import Moments, along, batch_moments


@keras.saving.register_keras_serializable(package="keras_bn")
class SequenceBatchNormalization(BatchNormalization):
    """Batch normalization with separate statistics for each time step, for the inputs of recurrent layers.

    For inputs of shape (batch, time, ..., channels): step t of a batch is normalized by the moments of step t
    over the batch, and moving_mean and moving_variance have shape (max_steps, channels). gamma and beta are
    shared by all steps (Cooijmans et al., 1603.09025, section 3: the statistics of the first steps differ
    from those of later ones, and sharing them hurts). Inference uses row min(t, max_steps - 1) for step t.

    Sequences of different lengths need a mask, which an `Embedding(mask_zero=True)` or a `Masking` layer
    provides. A step is then updated with the sequences that reach it. A step that no sequence reaches, or
    that is padded in all of them, changes nothing.

    Note: A step that a single sequence reaches is normalized to beta, and rows that no training sequence
    reaches stay as initialized, so let max_steps be a length that many sequences reach.

    `BatchNormalization` itself normalizes sequences by the moments over batch and time, masks included.

    Args:
        max_steps: Number of time steps with statistics of their own, at least 1.
        **kwargs: Arguments of `BatchNormalization`. The channels are on the last axis, and `synchronized` is
            not available.

    Raises:
        KerasBNError: If max_steps is below 1; if synchronized is set; if the inputs have fewer than three
            axes or their channels elsewhere than last.

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
        channels = self._checked_channels(input_shape)
        self._add_weights(channels, statistics_shape=(self.max_steps, channels))

    def _normalize_batch(self, inputs: Any, mask: Any) -> tuple[Any, Moments]:
        """Normalize every time step by its own moments, of which the first max_steps are returned."""
        shape, rank = inputs.shape, len(inputs.shape)
        kept = (1, rank - 1)
        check_several_values(tuple(shape), kept, self.name)
        gamma, beta = self._gamma_and_beta()
        if rank == 3 and shape[1] is not None:
            outputs, moments = self._as_channels(inputs, gamma, beta, mask)
        else:
            x = ops.cast(inputs, self.statistics_dtype)
            moments = batch_moments(x, kept, mask)
            outputs = normalized(x, moments, kept, gamma, beta, self.epsilon)
        moments = moments._replace(count=ops.broadcast_to(moments.count, ops.shape(moments.mean)))
        return outputs, Moments(*map(self._as_rows, moments))

    def _as_channels(self, inputs: Any, gamma: Any, beta: Any, mask: Any) -> tuple[Any, Moments]:
        """As (batch, time * channels): the channels of each step are channels of their own."""
        _, time, channels = inputs.shape
        flat = (-1, time * channels)
        if mask is not None:
            mask = ops.reshape(ops.broadcast_to(mask, ops.shape(inputs)), flat)
        outputs, moments = kernels.batch_norm(
            ops.reshape(inputs, flat), ops.tile(gamma, time), ops.tile(beta, time), self.epsilon, -1, mask
        )
        count = ops.broadcast_to(moments.count, ops.shape(moments.mean))
        rows = (ops.reshape(v, (time, channels)) for v in moments._replace(count=count))
        return ops.reshape(outputs, (-1, time, channels)), Moments(*rows)

    def _as_rows(self, steps: Any) -> Any:
        """(time, channels) cut or padded with zeros, also in the count, to (max_steps, channels)."""
        padding = ops.zeros((self.max_steps, self._channels), self.statistics_dtype)
        return ops.concatenate([steps, padding])[: self.max_steps]

    def call_inference(self, inputs: Any) -> Any:
        """Normalize step t by the population statistics of row min(t, max_steps - 1)."""
        x = ops.cast(inputs, self.statistics_dtype)
        rank = len(x.shape)
        rows = ops.minimum(ops.arange(ops.shape(x)[1]), self.max_steps - 1)
        scale, offset = (
            along(ops.take(v, rows, axis=0), rank, (1, rank - 1)) for v in self.inference_affine()
        )
        return ops.cast(x * scale + offset, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Every argument of the constructor."""
        return {**super().get_config(), "max_steps": self.max_steps}
