"""Looking into a model's BN layers."""

from __future__ import annotations

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
from keras_bn.surgery.fold import plan
from keras_bn.surgery.graph import is_graph
from keras_bn.surgery.normalizations import Normalization, batch_normalizations, in_training_mode
from keras_bn.surgery.observe import Observer
from keras_bn.surgery.recalibrate import Estimate, statistics_kept

PERCENTILES = (15, 50, 85)  # of the paper's figure 1


def inspect(
    model: keras.Model,
    data: Any = None,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    progress: bool = True,
) -> InspectionReport:
    """Report on the BN layers of a model: what is in them, whether it is sound, and whether it fits data.

    Without data: weights and configuration, dead and exploding channels, moving statistics that were never
    updated, NaN, and where `fold` would put each layer. With data also how far the moving statistics are from
    the data's, each layer looked at with everything before it running on its population statistics, so that
    the first layer that is off is the one to look at; and by how much `recalibrate(..., estimator="batch")`
    would change the output.

    Args:
        model: Functional or Sequential, with Keras's BN layers or ours. It is left as it is.
        data: whatever `Model.predict` takes, or None. It is walked twice; the batches of a generator are
            kept.
        batch_size: examples per batch of arrays; 32 if None.
        steps: how many batches to use; None: all.
        progress: show a progress bar on stderr.

    Returns:
        A report that prints as a table, `report.healthy` for CI, `to_dict`, `to_json` and `to_html`.

    Raises:
        KerasBNError: there is no BN layer, the model is subclassed or not built, or the data does not fit.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn")])
    >>> report = inspect(model)
    >>> report.healthy, report.layers[0].problems
    (False, ['statistics never updated'])
    """
    found = batch_normalizations(model)
    folds = _folds(model)
    training = in_training_mode(model) if is_graph(model) else []
    on_data: dict[str, DataReport] = {}
    change = None
    if data is not None and all(np.isfinite(w).all() for call in found for w in call.layer.get_weights()):
        source = batches(model, data, batch_size, steps)
        walked = source if source.reiterable else list(source)
        on_data = _on_data(model, walked, progress)
        change = _change(model, walked)
    layers = tuple(
        _layer_report(call, folds, call.path in training, on_data.get(call.path)) for call in found
    )
    return InspectionReport(model.name, layers, change)


def _layer_report(
    call: Normalization, folds: dict[str, str], in_training: bool, data: DataReport | None
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
        data=data,
    )


def _folds(model: keras.Model) -> dict[str, str]:
    try:
        rows = plan(model)
    except KerasBNError as error:
        return {call.path: f"no: {error}" for call in batch_normalizations(model)}
    return {row.layer: row.reason if row.action == "folded" else f"no: {row.reason}" for row in rows}


def _on_data(model: keras.Model, walked: Any, progress: bool) -> dict[str, DataReport]:
    paths = {call.layer: call.path for call in batch_normalizations(model)}
    example = next(iter(walked))
    observer = Observer(model, list(paths), example, sampled=True)
    total = getattr(walked, "total", None) or (len(walked) if isinstance(walked, list) else None)
    bar = tqdm(walked, "inspecting", total, unit="batch", disable=not progress)
    result = {}
    for layer, moments in observer.moments(bar).items():
        if not moments.count:
            continue
        before = observer.samples[layer].astype(float)
        deviation = np.sqrt(_array(layer.moving_variance) + layer.epsilon)
        after = (before - _array(layer.moving_mean)) / deviation
        after = after * (_array(layer.gamma) if layer.scale else 1)
        after = after + (_array(layer.beta) if layer.center else 0)
        percentiles = (np.percentile(values, PERCENTILES, axis=0) for values in (before, after))
        result[paths[layer]] = DataReport(moments.count, moments.mean, moments.variance, *percentiles)
    return result


def _change(model: keras.Model, walked: Any) -> float:
    """The largest change of an output of the first batch by recalibration, over the largest output."""
    example = next(iter(walked))
    layers = [call.layer for call in batch_normalizations(model)]
    before = outputs(model, example, worth_compiling(1))
    with statistics_kept(model):
        Estimate(model, layers, "batch").run(example, walked)
        change = difference(model, before, outputs(model, example, worth_compiling(1)), tolerance=np.inf)
    scale = max(float(np.abs(output.astype(float)).max()) for output in before)
    return change / scale if scale else 0.0


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable), float)
