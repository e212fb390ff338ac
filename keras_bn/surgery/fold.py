"""Fold BN into the layers around it, for inference."""

from __future__ import annotations

import keras

from keras_bn.surgery._folding import FoldPlan
from keras_bn.surgery._noise import change_on_noise
from keras_bn.surgery.freeze import unfrozen
from keras_bn.surgery.graph import losses
from keras_bn.surgery.report import Report, Row, SurgeryResult


def fold(model: keras.Model) -> SurgeryResult:
    """Fold every BN layer into its neighbors. The function at inference stays the same.

    At inference BN is x * scale + offset, with scale = gamma / sqrt(moving_variance + epsilon) and offset =
    beta - moving_mean * scale. If BN follows a layer W x + b, W becomes W scale and b becomes b scale +
    offset. If BN precedes the layer, W becomes scale W and b becomes b + offset W. Both are exact in real
    arithmetic. They are computed in float64 and rounded once.

    BN is folded into the layer before it if that is a convolution (Conv1D, Conv2D, Conv3D, also grouped,
    transposed, depthwise and separable), a Dense layer or another BN layer. Otherwise it is folded into all
    such layers after it. Layers through which a per-channel map can be moved may lie between the two:
    cropping, average pooling, upsampling, reshaping, dropout, concatenation (if BN follows it), and zero
    padding if the offset is zero. A layer that pads with zeros cannot absorb an offset from a BN layer before
    it. Layers keep their names. If a BN layer was an output of the model, an Identity layer takes its name.

    A BN layer that cannot be folded becomes one `keras_bn.ChannelAffine`. So does one whose means are more
    than 100 times what it puts out, unless it follows a layer that takes it up: after folding, these means
    would cancel in the sums of the next layer, which lose more digits than a subtraction.

    Note: The result is for inference. If you continue training it, it is a network without BN.

    A custom layer or subclassed model that contains BN is replaced by the graph of its `call`, so that BN in
    it is folded as well, and the result is a plain graph. This requires a `call` made of layers and
    `keras.ops`. Otherwise, and in the cells of recurrent layers, a BN layer becomes a multiply-add in its
    place and the classes are kept. Layers inside it that cannot be created from their configurations are
    replaced in the same way, so that the result can be loaded from a `.keras` file. If that is not possible,
    a note of the report names them.

    A zero padding layer before a convolution is removed if padding "same" of the convolution adds exactly
    the same zeros.

    Args:
        model: Any built model, with Keras's BN layers or ours. It is not changed. A model without BN is
            copied.

    Returns:
        A new model and a report, which tells for each BN layer where it was folded, or why it was not.
        `report.difference` is the largest change of an output on two examples of noise. It is None if the
        model does not take floating-point inputs.

    Raises:
        KerasBNError: If a BN layer runs in training mode, or has NaN or no positive variance; if folded
            weights overflow their dtype; or if the model is not built.

    >>> dense, bn = keras.layers.Dense(2, name="dense"), keras.layers.BatchNormalization(name="bn")
    >>> fold(keras.Sequential([keras.Input((4,)), dense, bn])).report.rows[0]
    Row(layer='bn', kind='BatchNormalization', action='folded', reason='into dense', difference=None)
    """
    model = unfrozen(model)
    plan = FoldPlan(model)
    result = plan.apply()
    difference = change_on_noise(model, result) if plan.rows else None
    notes = (*plan.notes, *losses(model, result))
    return SurgeryResult(result, Report("fold", tuple(plan.rows), difference, notes))


def plan(model: keras.Model) -> tuple[Row, ...]:
    """The rows of `fold(model).report`, without folding.

    Raises:
        KerasBNError: As for `fold`, except for weights that overflow.
    """
    return tuple(FoldPlan(unfrozen(model)).rows)
