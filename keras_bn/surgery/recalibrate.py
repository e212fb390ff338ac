"""Population statistics from data, with the weights frozen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import keras
import numpy as np
from tqdm import tqdm

from keras_bn.data import batches
from keras_bn.errors import KerasBNError
from keras_bn.statistics.population import PopulationMoments
from keras_bn.statistics.workers import across_workers
from keras_bn.surgery._comparison import compare
from keras_bn.surgery.graph import losses, rewrite
from keras_bn.surgery.normalizations import averaged_variance, batch_normalizations
from keras_bn.surgery.observe import Observer, normalized_by_batch, peek
from keras_bn.surgery.report import Report, Row, SurgeryResult
from keras_bn.surgery.selection import select


def recalibrate(
    model: keras.Model,
    data: Any,
    *,
    layers: Any = None,
    estimator: Literal["sequential", "batch"] = "sequential",
    batch_size: int | None = None,
    steps: int | None = None,
    progress: bool = True,
) -> SurgeryResult:
    """Re-estimate the moving mean and variance of BN layers from data, with the weights frozen.

    This is algorithm 2 of Ioffe and Szegedy (1502.03167). It mends a network after training with small
    batches or a slow momentum, averaging weights or pruning, and moves one to another domain (AdaBN, Li et
    al., 1603.04779). It needs no labels, and 1 000 to 10 000 examples are usually enough (Wu and Johnson,
    2105.07576). Nothing but the statistics changes, dropout is off, and every value of the data weighs the
    same, so a short last batch does no harm.

    Both estimators take for each layer the mean and variance of its inputs over all of the data. They
    differ in what the chosen layers *before* it do meanwhile:

    - `"sequential"`: they normalize by the population statistics just found for them. So the statistics are
      exactly those of the network as it will be used, and do not depend on how the data is cut into batches.
      It walks the data once per level of BN layers, running the network up to that level only. A generator is
      read once and its batches are kept in memory.
    - `"batch"`: they normalize by the moments of each batch, as in training; this is Precise BN. One walk
      over the data, but biased by the noise of the batch moments, of relative size 1 / sqrt(values per
      channel in a batch): negligible at 32 images a batch, harmful at 2. With all data in one batch both
      are the same, but for the layers' m / (m - 1).

    Under a `tf.distribute` strategy of several workers all of them call it, each with its own part of the
    data (one batch at least), and all get the statistics of the whole; `"sequential"` gives the same
    numbers as one machine with all of the data.

    The variance follows each layer's convention: biased for Keras's own, `unbiased_variance` for ours.

    Args:
        model: Functional or Sequential, with Keras's BN layers or ours. It is left as it is, on Ctrl-C too.
        data: whatever `Model.predict` takes.
        layers: which BN layers: a pattern of names or paths (`"block1_*"`), a class, a predicate on the
            layer, or several of these. The others keep their statistics and normalize by them. None: all,
            frozen or not.
        estimator: `"sequential"` or `"batch"`.
        batch_size: examples per batch of arrays; 32 if None.
        steps: how many batches to use; None: all.
        progress: show a progress bar on stderr.

    Returns:
        A new model and a report that says of each layer how far its statistics moved; `report.difference` is
        the largest change of an output on the first batch.

    Raises:
        KerasBNError: there is no such layer; the data does not fit, is not finite or ends early; a layer's
            inputs are not finite; or, for `"sequential"`, the output of a shared layer comes back to it.
    """
    if estimator not in ("sequential", "batch"):
        raise KerasBNError(f"estimator={estimator!r}: it must be 'sequential' or 'batch'.")
    paths = select(batch_normalizations(model), layers)
    source = batches(model, data, batch_size, steps)
    result = rewrite(model, lambda call, copy: None)
    found = batch_normalizations(result)
    chosen = [call.layer for call in found if call.path in paths]
    example, stream = peek(source)
    observer = Observer(result, chosen, example, normalized_by_batch if estimator == "batch" else None)
    levels = observer.levels() if estimator == "sequential" else [chosen]
    if len(levels) > 1 and not source.reiterable:
        stream = list(stream)
    walks = len(levels)
    outcome: dict[keras.Layer, tuple[str, str]] = {}
    with tqdm(
        total=source.total and source.total * walks, desc="recalibrating", unit="batch", disable=not progress
    ) as bar:
        for level in levels:
            found_here = observer.moments(level, _counted(stream, bar))
            merged = across_workers(list(found_here.values()))
            for layer, moments in zip(found_here, merged, strict=True):
                outcome[layer] = _update(layer, moments)
    rows = tuple(
        Row(call.path, type(call.layer).__name__, *outcome.get(call.layer, ("left alone", "not chosen")))
        for call in found
    )
    notes = (f"{estimator} estimator, {walks} walk{'s' * (walks > 1)} over the data", *losses(model, result))
    difference = compare(model, result, example, tolerance=np.inf)
    return SurgeryResult(result, Report("recalibrate", rows, difference, notes))


def _counted(stream: Iterable[Any], bar: tqdm) -> Iterable[Any]:
    for batch in stream:
        yield batch
        bar.update()


def _update(layer: keras.Layer, moments: PopulationMoments) -> tuple[str, str]:
    """Give a layer its new statistics; returns the action and what came of it."""
    if not moments.count:
        return "left alone", "the mask leaves no value"
    mean, variance = moments.mean, averaged_variance(layer, moments)
    old_mean, old_variance = (np.array(v, float) for v in (layer.moving_mean, layer.moving_variance))
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    if getattr(layer, "renorm", False):  # Keras's layer keeps apart what it renormalizes to in training
        layer.renorm_mean.assign(mean)
        layer.renorm_stddev.assign(np.sqrt(variance + layer.epsilon))
    shift = np.abs(mean - old_mean) / np.sqrt(variance + layer.epsilon)
    ratio = (variance + layer.epsilon) / (old_variance + layer.epsilon)
    return "recalibrated", (
        f"{moments.count} values per channel; mean moved by up to {shift.max():.2g} deviations, variance by "
        f"factors of {ratio.min():.2g} to {ratio.max():.2g}"
    )
