"""Re-estimate population statistics from data, with the weights frozen."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Literal

import keras
import numpy as np
from tqdm import tqdm

from keras_bn.data import batches
from keras_bn.errors import KerasBNError
from keras_bn.statistics.workers import across_workers
from keras_bn.surgery._checks import check_number
from keras_bn.surgery._cloning import Clone
from keras_bn.surgery._comparison import difference, outputs
from keras_bn.surgery._compiled import worth_compiling
from keras_bn.surgery._plain import plain_graph
from keras_bn.surgery._plausibility import Counted, doubts, snapshot
from keras_bn.surgery._sequential import Found, Plan
from keras_bn.surgery._streams import each_followed_by, peek
from keras_bn.surgery._together import Together
from keras_bn.surgery.normalizations import (
    batch_normalizations,
    set_statistics,
    statistics_kept,
    why_not_called,
)
from keras_bn.surgery.observe import Observer, normalized_by_batch
from keras_bn.surgery.population_statistics import PopulationStatistics
from keras_bn.surgery.report import Report, Row, SurgeryResult
from keras_bn.surgery.selection import Layers, select
from keras_bn.surgery.shards import apply, estimate_shard, loaded

MEMORY_LIMIT = 2 << 30


def recalibrate(
    model: keras.Model,
    data: Any = None,
    prior: float = 0,
    in_place: bool = False,
    *,
    layers: Layers = None,
    estimator: Literal["sequential", "batch"] = "sequential",
    batch_size: int | None = None,
    steps: int | None = None,
    memory_limit: float = MEMORY_LIMIT,
    shard: tuple[int, int] | None = None,
    presharded: bool = False,
    save: str | os.PathLike[str] | None = None,
    statistics: PopulationStatistics | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> SurgeryResult:
    """Re-estimate the moving mean and variance of BN layers from data, with the weights frozen.

    This is algorithm 2 of Ioffe and Szegedy (1502.03167). It repairs a network after training with small
    batches or a slow momentum, after averaging weights, or after pruning. It also adapts a network to another
    domain (AdaBN, Li et al., 1603.04779). It needs no labels, and 1 000 to 10 000 examples are usually enough
    (Wu and Johnson, 2105.07576). Only the statistics change, dropout is off, and every value of the data has
    the same weight, so a short last batch does no harm.

    Both estimators compute, for each layer, the mean and variance of its inputs over all of the data. They
    differ in how the chosen layers *before* it normalize:

    - `"sequential"`: Earlier layers normalize by their new population statistics. So the statistics are
      exactly those of the network at inference, and do not depend on how the data is cut into batches. The
      data is read once. The network is run in pieces, from one level of BN layers to the next, and the values
      between two pieces are kept for all of the data, so that each layer runs once per batch. A custom layer
      that holds several BN layers and cannot be taken apart is run on all of the data at once if
      `memory_limit` allows that, and once for each of its BN layers if not.
    - `"batch"`: Earlier layers normalize by the moments of each batch, as in training. This is Precise BN. It
      keeps no values, but it is biased by the noise of the batch moments. The relative size of the noise is 1
      / sqrt(values per channel in a batch), which is negligible at 32 images per batch and harmful at 2. With
      all data in one batch, both estimators agree up to the layers' factor of m / (m - 1).

    With few examples, use `prior` to mix the new statistics with the present ones. The present statistics
    count as those of `prior` values, and are merged with the N values of the data (Chan, Golub and LeVeque,
    1979). With w = prior / (prior + N),

        mean = w * old mean + (1 - w) * new mean
        variance = w * old variance + (1 - w) * new variance + w * (1 - w) * (old mean - new mean)²

    Note: `prior` counts values per channel. An image of 8 by 8 pixels has 64 of them. Schneider et al.
    (2006.16971) count examples and leave out the last term.

    Under a `tf.distribute` strategy of several workers, call this function in all of them, each with its own
    part of the data (at least one batch). All of them get the statistics of the whole data. `"sequential"`
    gives the same numbers as one machine with all of the data.

    The variance follows the convention of each layer: biased for Keras's layer, `unbiased_variance` for ours.

    Args:
        model: Any built model with Keras's BN layers or ours, on any backend. It is not changed, not even by
            Ctrl-C, unless `in_place` is True.
        data: Data in any form that `Model.predict` accepts.
        prior: Number of values per channel that the present statistics count as. With 0 they are replaced,
            with infinity they are kept.
        in_place: If True, change the statistics of `model` itself and return it. On an error or Ctrl-C they
            are restored exactly.
        layers: The BN layers to recalibrate: a pattern of names or paths (`"block1_*"`), a class, a predicate
            on the layer, or several of these. The others keep their statistics and normalize by them. If
            None, all layers are recalibrated, frozen or not.
        estimator: `"sequential"` or `"batch"`.
        batch_size: Number of examples per batch of arrays. If None, 32.
        steps: Number of batches to use. If None, all are used.
        memory_limit: Number of bytes that `"sequential"` may keep in memory between two levels, 2 GiB by
            default. The rest is written to a temporary folder, which is removed at the end.
        shard: A pair `(i, n)`, to estimate from the i-th of n shards of the data only. The shard consists of
            every n-th batch, and i counts from 0 to n - 1. Merge the shards with `keras_bn.merge`.
        presharded: If True, `data` is the shard already, and all of it is used.
        save: File to write the statistics of the shard to. They are also `statistics` of the result.
        statistics: Merged statistics, or their file. Without `data` they are applied to the model. With
            `data` and the sequential estimator, the next level is estimated.
        progress: If True, show a progress bar on stderr.

    Returns:
        The model and a report with the change of each layer's statistics. `report.difference` is the largest
        change of an output on the first batch. For a shard, the result also has `statistics`, the
        `PopulationStatistics` to merge.

    Raises:
        KerasBNError: If `layers` matches nothing; if the data does not fit, is not finite or ends early; if
            the inputs of a layer are not finite; or, for `"sequential"`, if the output of a shared layer is
            also its input.
    """
    if estimator not in ("sequential", "batch"):
        raise KerasBNError(f"estimator={estimator!r}: it must be 'sequential' or 'batch'.")
    if statistics is not None:
        statistics = loaded(statistics)
    if data is None:
        if statistics is None:
            raise KerasBNError("Give the data to estimate the statistics from, or statistics= to apply.")
        return apply(model, statistics, in_place, prior)
    if shard is not None or save is not None or statistics is not None:
        if prior or in_place:
            raise KerasBNError("prior and in_place do not go with shards; they apply to merged statistics.")
        return estimate_shard(
            model,
            data,
            (0, 1) if shard is None else shard,
            save,
            statistics,
            presharded=presharded,
            layers=layers,
            estimator=estimator,
            batch_size=batch_size,
            steps=steps,
            progress=progress,
        )
    check_number("prior", prior)
    check_number("memory_limit", memory_limit)
    known = batch_normalizations(model)
    paths = select(known, layers)
    source = batches(model, data, batch_size, steps)
    clone = None if in_place else Clone(model)
    result = model if clone is None else clone.model
    pairs = [(found.path, found.layer if clone is None else clone.of(found.layer)) for found in known]
    chosen = [layer for path, layer in pairs if path in paths and layer.built]
    example, stream = peek(source)
    with statistics_kept(result, on_error_only=True) if in_place else nullcontext():
        before = outputs(model, example, worth_compiling(1))
        estimate = Estimate(result, chosen, estimator, prior, memory_limit)
        with tqdm(total=source.total, desc="recalibrating", unit="batch", disable=not progress) as bar:
            estimate.run(example, stream, bar)
        change = difference(model, before, outputs(result, example, worth_compiling(1)), tolerance=np.inf)

        def outcome(path: str, layer: keras.Layer) -> Any:
            if layer in estimate.outcome:
                return estimate.outcome[layer]
            if path not in paths:
                return "left alone", "not chosen"
            return "left alone", estimate.unseen.get(layer) or why_not_called(layer, result)

        rows = tuple(Row(path, type(layer).__name__, *outcome(path, layer)) for path, layer in pairs)
        # With a prior, few examples are no fault.
        notes = () if prior else tuple(estimate.doubts)
        for note in notes:
            warnings.warn(note, stacklevel=2)
    return SurgeryResult(result, Report("recalibrate", rows, change, (estimate.note, *notes)))


class Estimate:
    """New statistics for layers of a model, set in the model itself.

    Attributes:
        outcome: The last fields of the row of every layer that was recalibrated.
        doubts: Reasons to doubt that the data is suitable, a sentence each.
        unseen: The reason why the inputs of a layer were not observed.
        note: The estimator and the number of levels.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: list[keras.Layer],
        estimator: str,
        prior: float = 0,
        memory_limit: float = MEMORY_LIMIT,
    ) -> None:
        self.outcome: dict[keras.Layer, Any] = {}
        self.doubts: list[str] = []
        self.unseen: dict[keras.Layer, str] = {}
        self.note = f"{estimator} estimator"
        self._model, self._layers, self._estimator = model, layers, estimator
        self._prior, self._memory_limit = prior, memory_limit
        self._found: Found = {}
        self._originals = {layer: layer for layer in layers}

    def run(self, example: Any, data: Iterable[Any], bar: tqdm | None = None) -> None:
        """Find the statistics over `data`, of which `example` is one batch, and set them."""
        bar = tqdm(disable=True) if bar is None else bar
        before, data = snapshot(self._layers), Counted(data)
        compiles = worth_compiling(bar.total)
        if self._estimator == "batch":
            observer = Observer(self._model, self._layers, example, normalized_by_batch, compiles=compiles)
            self._set(observer.moments(each_followed_by(bar.update, data)))
        else:
            model, twins = plain_graph(self._model, self._layers, example)
            self._originals = dict(zip(twins, self._layers, strict=True))
            observer = Observer(model, twins, example, compiles=compiles)
            order = observer.order(example)
            plan = Plan(observer.program, order, compiles, Together(observer, order))
            self.note += f", {len(plan.levels)} level{'s' * (len(plan.levels) > 1)} of layers"
            bar.total = bar.total and bar.total * plan.stages
            plan.run(data, self._set, self._memory_limit, bar.update)
        self.unseen |= {self._originals[layer]: reason for layer, reason in observer.unseen.items()}
        self.doubts = doubts(self._found, before, data.examples)

    def _set(self, found: Found) -> None:
        merged = across_workers(list(found.values()))
        for twin, moments in zip(found, merged, strict=True):
            layer = self._originals[twin]
            self._found[layer] = found[twin]
            self.outcome[layer] = set_statistics(layer, moments, self._prior)
            if twin is not layer:  # the levels after it are observed in a copy
                set_statistics(twin, moments, self._prior)
