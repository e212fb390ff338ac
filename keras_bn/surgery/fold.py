"""BN absorbed into the layers around it, for inference."""

from __future__ import annotations

import keras

from keras_bn.surgery._folding import FoldPlan
from keras_bn.surgery._noise import change_on_noise
from keras_bn.surgery.freeze import unfrozen
from keras_bn.surgery.graph import losses
from keras_bn.surgery.report import Report, Row, SurgeryResult


def fold(model: keras.Model) -> SurgeryResult:
    """Absorb every BN layer into its neighbours: the result is the same function at inference, with less to
    do.

    At inference BN is x * scale + offset, with scale = gamma / sqrt(moving_variance + epsilon) and offset =
    beta - moving_mean * scale. After a layer W x + b it turns W into W scale and b into b scale + offset;
    before one, W into scale W and b into b + offset W. Both are exact in real arithmetic; they are computed
    in float64 and rounded once.

    BN goes into the layer before it (Conv1D/2D/3D, also grouped, transposed, depthwise and separable;
    Dense; another BN), else into all of those after it. Between the two may lie what a per-channel map
    passes through: cropping, average pooling, upsampling, reshaping, dropout, concatenation on the way
    back, zero padding if the offset is zero. A layer that pads with zeros takes up no offset from before.
    What cannot be absorbed becomes one `keras_bn.ChannelAffine`. Layers keep their names; a BN layer that
    was an output leaves an Identity of its name.

    The result is for inference: trained on, it is a network without BN.

    A layer of one's own, or a subclassed model, is replaced by the graph of what its `call` does wherever BN
    is inside, so BN there is absorbed as well, and the result is a plain graph. That needs a `call` made of
    layers and `keras.ops`. Where it is something else, and in the cells of recurrent layers, a BN layer
    becomes a multiply-add in its place and the classes stay.

    A zero padding layer before a convolution goes as well, where the convolution's padding "same" adds
    exactly the same zeros.

    Args:
        model: any built model, with Keras's BN layers or ours. It is left as it is. One without any is
            copied.

    Returns:
        A new model and a report of what went where, and what not and why; `report.difference` is the
        largest change of an output on two examples of noise, None where the model does not take floats.

    Raises:
        KerasBNError: a BN layer runs in training mode, or has NaN or no positive variance in it; folded
            weights overflow their dtype; or the model is not built.

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
        KerasBNError: as `fold`, but for weights that overflow.
    """
    return tuple(FoldPlan(unfrozen(model)).rows)
