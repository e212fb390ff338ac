"""Fine-tuning with frozen statistics: join BN with the layer before it, and undo this."""

from __future__ import annotations

import keras

from keras_bn.errors import KerasBNError
from keras_bn.layers.joined import JoinedBatchNormalization
from keras_bn.surgery._checks import check_model, check_weights
from keras_bn.surgery._cloning import layers_in
from keras_bn.surgery._freezing import Freezing
from keras_bn.surgery._noise import change_on_noise
from keras_bn.surgery._thawing import Thawing
from keras_bn.surgery.graph import losses
from keras_bn.surgery.normalizations import batch_normalizations
from keras_bn.surgery.report import Report, SurgeryResult
from keras_bn.surgery.selection import Layers, select


def freeze(model: keras.Model, layers: Layers = None, in_place: bool = False) -> SurgeryResult:
    """Freeze the population statistics of BN layers, so that fine-tuning costs no more than without BN.

    With frozen statistics, BN is z * scale + offset in training too, with scale = gamma /
    sqrt(moving_variance + epsilon) and offset = beta - moving_mean * scale. A BN layer behind a convolution
    or dense layer z = W x + b is joined with it into one `JoinedBatchNormalization`:

        y = (W * scale) x + (b * scale + offset)

    The product is computed again in every step, and W, b, gamma and beta remain the trained weights ("tune
    mode", 2305.11624). So the function and its gradients are those of frozen BN, up to rounding, but the
    activation z is neither computed nor stored. On ResNet50, a training step needs as much memory as one of
    a network without BN.

    A BN layer is joined if it directly follows a convolution (Conv1D, Conv2D, Conv3D, also grouped,
    transposed, depthwise and separable) or a Dense layer, without an activation between the two. In a custom
    layer or a subclassed model, a trace of its `call` shows whether it does. Any other BN layer becomes a
    `FrozenBatchNormalization`. A variant of ours keeps its class, with `frozen_statistics=True`. Train the
    result like any model. Then `unfreeze` restores the original layers with the trained weights, for `fold`,
    `export`, or training with batch statistics.

    Custom layers and subclassed models keep their classes. In their code, the `JoinedBatchNormalization`
    takes the place of the convolution or dense layer, and an `AbsorbedBatchNormalization`, which returns its
    inputs, that of the BN layer.

    Note: `bn.trainable = False` also freezes the statistics, but it freezes gamma and beta as well. A layer
    with this setting keeps it here.

    Compared with PyTorch: `eval()` freezes the statistics as well, until the next `train()` of a parent
    module.

    Args:
        model: Any built model. It is not changed, unless `in_place` is True.
        layers: The BN layers to freeze: a pattern of names or paths (`"block1_*"`), a class, a predicate on
            the layer, or several of these. If None, all are frozen.
        in_place: If True, replace the layers in `model` itself and return it. On an error or Ctrl-C the
            model is restored exactly.

    Returns:
        The new model, compiled like the old one, and a report with a row for each BN layer. The action is
        `joined`, `frozen` or `left alone`, with the reason. `report.difference` is the largest change of an
        output on two examples of noise. It is None if the model does not take floating-point inputs.

    Raises:
        KerasBNError: If the model is not built, has NaN or infinity in its weights or has no BN layer; or if
            `layers` matches none.

    >>> from keras.layers import BatchNormalization, Dense, ReLU
    >>> stack = [keras.Input((4,)), Dense(8, name="dense"), BatchNormalization(name="bn"), ReLU()]
    >>> result = freeze(keras.Sequential(stack))
    >>> result.report.rows[0]
    Row(layer='bn', kind='BatchNormalization', action='joined', reason='with dense', difference=None)
    >>> [layer.name for layer in unfreeze(result.model).model.layers[:2]]
    ['dense', 'bn']
    """
    found = batch_normalizations(model)
    check_weights(model)
    freezing = Freezing(model, found, select(found, layers))
    result, difference = freezing.tried()
    if in_place:
        freezing.apply_to(model)
        result = model
    notes = (*freezing.notes(), *losses(model, result))
    return SurgeryResult(result, Report("freeze", freezing.rows(), difference, notes))


def unfreeze(model: keras.Model, in_place: bool = False) -> SurgeryResult:
    """Undo `freeze`: restore the original layers, with the present weights of the frozen ones.

    `freeze` followed by `unfreeze` restores the model exactly. After training in between, the result computes
    the same function at inference as the frozen model, up to rounding. The statistics are those before
    `freeze`.

    Note: A variant of ours, such as `GhostBatchNormalization`, is unfrozen even if it was created with
    `frozen_statistics=True`. A plain `BatchNormalization` created so stays frozen.

    Args:
        model: A model that `freeze` made, trained or not, also after saving and loading. It is not changed,
            unless `in_place` is True.
        in_place: If True, restore the layers in `model` itself and return it.

    Returns:
        The new model, compiled like the old one, and a report with a row for each frozen layer.
        `report.difference` is as for `freeze`.

    Raises:
        KerasBNError: If nothing in the model is frozen, or if it is not built.

    >>> from keras.layers import BatchNormalization
    >>> model = keras.Sequential([keras.Input((4,)), BatchNormalization(name="bn")])
    >>> type(unfreeze(freeze(model).model).model.get_layer("bn")) is BatchNormalization
    True
    """
    check_model(model)
    thawing = Thawing(model)
    if not thawing.rows:
        raise KerasBNError(
            f"Model {model.name!r} has no layer with frozen statistics; pass one that keras_bn.freeze made."
        )
    result = thawing.applied()
    difference = change_on_noise(model, result)
    if in_place:
        thawing.apply_to(model)
        result = model
    return SurgeryResult(result, Report("unfreeze", thawing.rows, difference, losses(model, result)))


def unfrozen(model: keras.Model) -> keras.Model:
    """The model itself, or the result of `unfreeze` if `freeze` joined layers in it."""
    layers = layers_in(model) if isinstance(model, keras.Model) else []
    joined = any(isinstance(layer, JoinedBatchNormalization) for _, layer in layers)
    return unfreeze(model).model if joined else model
