"""Insert batch normalization into a trained network without changing its outputs."""

from __future__ import annotations

from typing import Any

import keras
from tqdm import tqdm

from keras_bn.data import batches
from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.linear import KINDS
from keras_bn.statistics.moments import along
from keras_bn.surgery._checks import check_layer_class, check_model, check_number, check_weights
from keras_bn.surgery._comparison import compare
from keras_bn.surgery._inlining import inlined_exactly
from keras_bn.surgery._insertion import Insertion, identity_row, make_identity
from keras_bn.surgery._placement import places
from keras_bn.surgery._streams import peek
from keras_bn.surgery.graph import losses, rewrite, walk
from keras_bn.surgery.observe import Observer
from keras_bn.surgery.report import Report, Row, SurgeryResult
from keras_bn.surgery.selection import Layers

POSITIONS = ("before_activation", "after_activation")


def retrofit(
    model: keras.Model,
    data: Any,
    *,
    layers: Layers = None,
    position: str = "before_activation",
    layer: type = BatchNormalization,
    layer_arguments: dict[str, Any] | None = None,
    drop_bias: bool = False,
    remove_dropout: bool = False,
    l2_factor: float = 1.0,
    batch_size: int | None = None,
    steps: int | None = None,
    check_data: Any = None,
    tolerance: float | None = None,
    progress: bool = True,
) -> SurgeryResult:
    """Insert a normalization after each convolution and dense layer, without changing any output.

    A normalization returns its input if gamma = sqrt(variance + epsilon) and beta = mean, with the mean and
    variance of each channel of that input over `data` (Ioffe and Szegedy, 1502.03167, section 3). Inference
    computes gamma / sqrt(variance + epsilon), and gamma is the same float as this square root. So the scale
    is exactly 1, the offset is exactly 0, and the inserted layer is the identity bit for bit. The inputs of
    later layers do not change either, and the data is read once for all insertions. In training, the
    network then normalizes by its batches, so you can continue training from there.

    An activation fused into a layer is split out: `conv1` becomes `conv1`, `conv1_bn`, `conv1_relu`.
    TensorFlow may use one kernel for a convolution fused with its activation and another for the convolution
    alone, which changes outputs by rounding. The report gives the largest change measured.

    Output layers are left alone. These are the layers from which an output of the model is reached without
    passing another layer that has weights, also through pooling, resizing, slicing, concatenation, addition
    or `keras.ops`. To normalize such a layer, give its name in `layers`. Values that are rectified and then
    max-pooled, as at the end of VGG without its top, are features, and their layer is normalized.

    A custom layer or subclassed model is replaced by the graph of its `call`, if that is made of layers and
    `keras.ops` and does the same in training. The result is then a plain graph.

    Note: `data` must be preprocessed as in training (scaled, mean subtracted). Otherwise the statistics do
    not fit the network, and training does not start from the outputs at inference.

    Args:
        model: Any built model. It is not changed. If a layer is called several times, each call gets its own
            normalization.
        data: Data in any form that `Model.predict` accepts. A few hundred examples give usable statistics.
        layers: The layers to normalize: a class, a name pattern (`"block5_*"`), a predicate that takes the
            layer, or a list of these. If None, all but the output layers are normalized.
        position: "before_activation", as in the paper, or "after_activation".
        layer: The class to insert, `keras_bn.BatchNormalization` or one with the same interface.
        layer_arguments: Arguments of the inserted layers, such as `{"momentum": 0.9}`.
        drop_bias: If True, build the layers without their biases, which the normalization makes redundant,
            and absorb them into beta. This is exact up to the rounding of one subtraction.
        remove_dropout: If True, remove Dropout and SpatialDropout layers, as section 4.2.1 of the paper
            advises.
        l2_factor: Factor for the L2 weight regularization. Section 4.2.1 of the paper divides it by 5.
        batch_size: Number of examples per batch of arrays. If None, 32.
        steps: Number of batches to read. It is required for data that never ends.
        check_data: One batch of inputs to check the result with. If None, the first batch of `data` is used.
        tolerance: Largest allowed change of an output, as a fraction of the largest value of that output. If
            None, 1e-5, or 1e-2 for an output of 16 bits.
        progress: If True, show a progress bar on stderr.

    Returns:
        The new model and the report. The model has the compile configuration and the `trainable` flags of the
        old one, and an inserted layer has the flag of the layer before it.

    Raises:
        KerasBNError: If the model is not built, has NaN or infinity in its weights, has nothing to retrofit,
            or is subclassed with a `call` that cannot be traced as a graph; if `layers` matches nothing; if
            the data is empty, of the wrong shape or not finite; if arguments contradict each other; or if an
            output changes by more than the tolerance.

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((4,)),
    ...         keras.layers.Dense(8, "relu", name="hidden"),
    ...         keras.layers.Dense(2, name="logits"),
    ...     ]
    ... )
    >>> x = keras.random.normal((64, 4), seed=0)
    >>> result = retrofit(model, x, progress=False)
    >>> [layer.name for layer in result.model.layers]
    ['hidden', 'hidden_bn', 'hidden_relu', 'logits']
    >>> bool((result.model.predict(x, verbose=0) == model.predict(x, verbose=0)).all())
    True
    """
    _check_arguments(position, drop_bias, layer_arguments)
    check_layer_class(layer)
    check_number("l2_factor", l2_factor)
    if tolerance is not None:
        check_number("tolerance", tolerance)
    check_model(model)
    check_weights(model)
    source = batches(model, data, batch_size, steps)
    first_batch, stream = peek(source)
    inlined = inlined_exactly(model, lambda layer: isinstance(layer, KINDS), True, first_batch)
    found = list(walk(inlined.model, inlined.paths))
    chosen, left_alone = places(inlined, layers, position == "before_activation")
    if not chosen:
        reasons = [f"{row.layer}: {row.reason}" for row in left_alone[:5]] or ["no such layer in it"]
        raise KerasBNError(f"Model {model.name!r} has nothing to retrofit: {'; '.join(reasons)}.")
    insertion = Insertion(chosen, layer, layer_arguments or {}, drop_bias, remove_dropout, l2_factor)
    result = rewrite(inlined.model, insertion.edit, owned=True, paths=inlined.paths)
    inserted = {insertion.layer_at(place): place for place in chosen}
    biases = {new: insertion.bias_dropped_at(place) for new, place in inserted.items()}
    observer = Observer(
        result, list(inserted), first_batch, lambda new, x, *_: _plus(x, biases[new], new.axis)
    )
    bar = tqdm(stream, "calibrating", source.total, unit="batch", disable=not progress)
    rows = [*left_alone, *insertion.rows]
    for new, moments in observer.moments(bar).items():
        make_identity(new, biases[new], moments)
        rows.append(identity_row(inserted[new], new, biases[new]))
    check_batch = first_batch if check_data is None else next(iter(batches(model, check_data)))
    difference = compare(model, result, check_batch, tolerance)
    in_order = _in_graph_order(rows, [call.path for call in found])
    notes = (*inlined.notes(), *losses(model, result))
    return SurgeryResult(result, Report("retrofit", in_order, difference, notes))


def _plus(inputs: Any, bias: Any, axis: int) -> Any:
    """The inputs with the bias that the layer before them has lost."""
    if bias is None:
        return inputs
    return inputs + keras.ops.cast(along(bias, len(inputs.shape), axis), inputs.dtype)


def _in_graph_order(rows: list[Row], paths: list[str]) -> tuple[Row, ...]:
    order = {path: index for index, path in enumerate(paths)}

    def position(row: Row) -> int:  # what is inside a wrapper comes where the wrapper is
        return order.get(row.layer, order.get(row.layer.rpartition("/")[0], len(order)))

    return tuple(sorted(rows, key=position))


def _check_arguments(position: str, drop_bias: bool, layer_arguments: dict[str, Any] | None) -> None:
    if position not in POSITIONS:
        raise KerasBNError(f"position={position!r}; it must be one of {', '.join(POSITIONS)}.")
    if drop_bias and position == "after_activation":
        raise KerasBNError(
            'drop_bias=True with position="after_activation": an activation stands between bias and '
            "normalization, so the bias is not redundant; leave out one of the two arguments."
        )
    if not isinstance(layer_arguments, (dict, type(None))):
        raise KerasBNError(
            f"layer_arguments={layer_arguments!r}; it must be a dictionary of arguments, such as "
            '{"momentum": 0.9}, or None.'
        )
    for name in ("axis", "name", "dtype"):
        if name in (layer_arguments or {}):
            raise KerasBNError(
                f"layer_arguments has {name!r}, which is taken from the normalized layer; leave it out."
            )
