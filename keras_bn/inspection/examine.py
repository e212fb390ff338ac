"""Inspect the BN layers of a model."""

from __future__ import annotations

import datetime
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from keras_bn.data import batches
from keras_bn.errors import KerasBNError
from keras_bn.inspection.layer_report import DataReport, LayerReport
from keras_bn.inspection.report import InspectionReport
from keras_bn.surgery._comparison import difference, outputs
from keras_bn.surgery._compiled import worth_compiling
from keras_bn.surgery._plausibility import Counted, doubts, snapshot
from keras_bn.surgery.fold import plan
from keras_bn.surgery.graph import is_graph
from keras_bn.surgery.normalizations import (
    Normalization,
    batch_normalizations,
    in_training_mode,
    statistics_kept,
)
from keras_bn.surgery.observe import Observer
from keras_bn.surgery.recalibrate import Estimate

PERCENTILES = (15, 50, 85)  # of the paper's figure 1


def inspect(
    model: keras.Model,
    data: Any = None,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    progress: bool = True,
) -> InspectionReport:
    """Report on the BN layers of a model, and whether their statistics fit data.

    Without data, the report has the weights and configuration of each layer, dead and exploding channels,
    moving statistics that were never updated, NaN, and the layer into which `fold` would fold it.

    With data, the report also has the distance between the moving statistics and those of the data. Each
    layer is observed with all earlier layers in inference mode, so the first layer with a problem is the one
    to fix first. The report also has the change of the output by `recalibrate(..., estimator="batch")`. A
    change by more than a quarter of the largest output means that the statistics do not fit the data, and the
    model is not healthy.

    A layer that cannot be observed, or is never called, is reported with the reason.

    Args:
        model: Any built model with Keras's BN layers or ours, on any backend. It is not changed.
        data: Data in any form that `Model.predict` accepts, or None. It is read twice. The batches of a
            generator are kept in memory.
        batch_size: Number of examples per batch of arrays. If None, 32.
        steps: Number of batches to use. If None, all are used.
        progress: If True, show a progress bar on stderr.

    Returns:
        An `InspectionReport`. It prints as a table. `report.healthy` is the verdict, and `to_dict`, `to_json`
        and `to_html` give the report in other forms.

    Raises:
        KerasBNError: If there is no BN layer, the model is not built, or the data does not fit the model.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn")])
    >>> report = inspect(model)
    >>> report.healthy, report.layers[0].problems
    (False, ['statistics never updated'])
    """
    found = [each for each in batch_normalizations(model) if each.layer.built]
    unbuilt = [each.path for each in batch_normalizations(model) if not each.layer.built]
    notes = [f"{path} has no weights yet: it is never called." for path in unbuilt]
    folds = _folds(model)
    training = in_training_mode(model) if is_graph(model) else []
    on_data: dict[str, DataReport | str] = {}
    change, label, examples = None, "", 0
    if data is not None and all(np.isfinite(w).all() for call in found for w in call.layer.get_weights()):
        source = batches(model, data, batch_size, steps)
        kept = None if source.reiterable else list(source)
        walked, total = Counted(kept or source), source.total if kept is None else len(kept)
        on_data, doubted = _on_data(model, found, walked, total, progress)
        notes += doubted
        label, examples = _label(data), walked.examples
        change = _change(model, found, walked, total)
    layers = tuple(
        _layer_report(call, folds, call.path in training, on_data.get(call.path)) for call in found
    )
    date = datetime.date.today().isoformat()
    return InspectionReport(model.name, layers, change, label, examples, date, tuple(notes))


def _layer_report(
    call: Normalization, folds: dict[str, str], in_training: bool, data: DataReport | str | None
) -> LayerReport:
    layer = call.layer
    mean, variance = (_array(v) for v in (layer.moving_mean, layer.moving_variance))
    return LayerReport(
        layer=call.path,
        kind=type(layer).__name__,
        shape=call.shape,
        axis=layer.axis,
        momentum=layer.momentum,
        epsilon=layer.epsilon,
        trainable=layer.trainable,
        gamma=_array(layer.gamma) if layer.scale else np.ones_like(mean),
        beta=_array(layer.beta) if layer.center else np.zeros_like(mean),
        mean=mean,
        variance=variance,
        in_training=in_training,
        untouched=not mean.any() and bool((variance == 1).all()),
        fold=folds.get(call.path, ""),
        data=data if isinstance(data, DataReport) else None,
        unseen=data if isinstance(data, str) else "",
    )


def _folds(model: keras.Model) -> dict[str, str]:
    try:
        rows = plan(model)
    except KerasBNError as error:
        return {call.path: f"no: {error}" for call in batch_normalizations(model)}
    return {row.layer: row.reason if row.action == "folded" else f"no: {row.reason}" for row in rows}


def _on_data(
    model: keras.Model, found: list[Normalization], data: Counted, total: int | None, progress: bool
) -> tuple[dict[str, DataReport | str], list[str]]:
    """The `DataReport` of each layer by path, or why it was not observed, and doubts about the data."""
    paths = {each.layer: each.path for each in found}
    observer = Observer(model, list(paths), next(iter(data)), sampled=True, compiles=worth_compiling(total))
    bar = tqdm(data, "inspecting", total, unit="batch", disable=not progress)
    moments = observer.moments(bar)
    result: dict[str, DataReport | str] = {paths[x]: reason for x, reason in observer.unseen.items()}
    for layer, each in moments.items():
        if not each.count:
            continue
        before = observer.samples[layer].astype(float)
        deviation = np.sqrt(_array(layer.moving_variance) + layer.epsilon)
        after = (before - _array(layer.moving_mean)) / deviation
        after = after * (_array(layer.gamma) if layer.scale else 1)
        after = after + (_array(layer.beta) if layer.center else 0)
        percentiles = (np.percentile(values, PERCENTILES, axis=0) for values in (before, after))
        result[paths[layer]] = DataReport(each.count, each.mean, each.variance, *percentiles)
    return result, doubts(moments, snapshot(moments), data.examples)


def _change(model: keras.Model, found: list[Normalization], data: Counted, total: int | None) -> float:
    """The largest change of an output of the first batch by recalibration, over the largest output."""
    example = next(iter(data))
    before = outputs(model, example, worth_compiling(1))
    with statistics_kept(model):
        estimate = Estimate(model, [each.layer for each in found], "batch")
        with tqdm(total=total, disable=True) as bar:
            estimate.run(example, data, bar)
        after = outputs(model, example, worth_compiling(1))
    change = difference(model, before, after, tolerance=np.inf)
    scale = max(float(np.abs(output.astype(float)).max()) for output in before)
    return change / scale if scale else 0.0


def _label(data: Any) -> str:
    """A short description of the data."""
    leaves = [leaf for leaf in keras.tree.flatten(data) if hasattr(leaf, "shape")]
    if not leaves:
        return f"a {type(data).__name__}"
    return ", ".join(f"an array of shape {tuple(leaf.shape)}" for leaf in leaves)


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable), float)
