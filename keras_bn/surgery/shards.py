"""Population statistics of data that is spread over several jobs, each of which estimates from one shard."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

import keras
from tqdm import tqdm

from keras_bn.data import batches
from keras_bn.errors import KerasBNError
from keras_bn.statistics.population import PopulationMoments
from keras_bn.surgery._checks import check_number
from keras_bn.surgery._cloning import Clone
from keras_bn.surgery._compiled import worth_compiling
from keras_bn.surgery._sequential import Plan
from keras_bn.surgery._streams import each_followed_by, peek
from keras_bn.surgery.normalizations import batch_normalizations, set_statistics, statistics_kept
from keras_bn.surgery.observe import Observer, normalized_by_batch
from keras_bn.surgery.population_statistics import PopulationStatistics, fingerprint
from keras_bn.surgery.report import Report, Row, SurgeryResult
from keras_bn.surgery.selection import Layers, select

Source: TypeAlias = "PopulationStatistics | str | os.PathLike[str]"


def loaded(statistics: Source) -> PopulationStatistics:
    """The value itself, or what its file holds."""
    if isinstance(statistics, PopulationStatistics):
        return statistics
    return PopulationStatistics.load(statistics)


def checked_shard(shard: Any) -> tuple[int, int]:
    """The index and the number of shards, or a KerasBNError."""
    try:
        index, count = shard
        if isinstance(index, bool) or int(index) != index or int(count) != count or not 0 <= index < count:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise KerasBNError(
            f"shard={shard!r}: give (i, n), the i-th of n shards, with i from 0 to n - 1."
        ) from error
    return int(index), int(count)


class ShardResult(SurgeryResult):
    """The result of `keras_bn.recalibrate` for a shard.

    Attributes:
        statistics: The statistics of the shard, to merge with those of the other shards.
    """

    statistics: PopulationStatistics

    @classmethod
    def of(cls, model: keras.Model, report: Report, statistics: PopulationStatistics) -> ShardResult:
        """The result with these statistics."""
        result = cls(model, report)
        result.statistics = statistics
        return result


class ShardObserver:
    """The BN layers of a copy of a model, prepared to observe one level of them.

    Args:
        model: A built model. It is not changed.
        example: One batch of inputs.
        layers: As for `keras_bn.recalibrate`.
        estimator: `"batch"` or `"sequential"`.
        earlier: For `"sequential"`, the merged statistics of the levels before, or None for the first level.
        compiles: If False, run the model eagerly.

    Attributes:
        levels: The paths of the layers, level by level.
        level: The level to observe, counted from 0.

    Raises:
        KerasBNError: If `earlier` is incomplete, belongs to another model or other weights, or has every
            level.
    """

    def __init__(
        self,
        model: keras.Model,
        example: Any,
        layers: Layers,
        estimator: str,
        earlier: PopulationStatistics | None = None,
        compiles: bool = True,
    ) -> None:
        known = batch_normalizations(model)
        paths = select(known, layers)
        clone = Clone(model)
        self.model = clone.model
        self.estimator = estimator
        self.layers = {found.path: clone.of(found.layer) for found in known}
        self._paths = {id(layer): path for path, layer in self.layers.items()}
        self._example = example
        chosen = [layer for path, layer in self.layers.items() if path in paths and layer.built]
        estimated = [v for layer in chosen for v in (layer.moving_mean, layer.moving_variance)]
        self.fingerprint = fingerprint(self.model, estimated)
        self._output = normalized_by_batch if estimator == "batch" else None
        self.levels = self._levels(chosen)
        self.earlier = {} if earlier is None else dict(self._checked(earlier).moments)
        self.level = 0 if earlier is None else earlier.level + 1
        for path, moments in self.earlier.items():
            set_statistics(self.layers[path], moments)
        observed = [self.layers[path] for path in self.levels[self.level]]
        self._observer = Observer(self.model, observed, example, self._output, compiles=compiles)

    def _levels(self, chosen: Sequence[keras.Layer]) -> tuple[tuple[str, ...], ...]:
        observer = Observer(self.model, chosen, self._example, self._output, compiles=False)
        order = observer.order(self._example)
        calls = [layer for layers in order.values() for layer in layers]
        if self.estimator == "batch":
            return (tuple(self._paths[id(layer)] for layer in dict.fromkeys(calls)),)
        for layer in (each for layers in order.values() for each in layers if layers.count(each) > 1):
            raise KerasBNError(
                f"{self._paths[id(layer)]!r} is called several times in one layer, and a shard cannot tell "
                "whether its own output comes back to it; use estimator='batch', or leave it out with "
                "layers=."
            )
        levels = Plan(observer.program, order).levels
        return tuple(tuple(self._paths[id(layer)] for layer in level) for level in levels)

    def _checked(self, earlier: PopulationStatistics) -> PopulationStatistics:
        earlier = earlier.with_paths(tuple(self.layers))
        earlier.check_fits(self.estimator, self.levels, self.fingerprint)
        earlier.check_complete()
        if not earlier.remaining_levels:
            raise KerasBNError(
                "The statistics already have every level; apply them with recalibrate(model, statistics=...)."
            )
        return earlier

    def observe(
        self, data: Iterable[Any], so_far: Mapping[str, PopulationMoments] | None = None
    ) -> dict[str, PopulationMoments]:
        """The moments of the inputs of the level's layers over batches of inputs, by path.

        Those `so_far` are added to, and are part of the result.
        """
        found = {self.layers[path]: moments for path, moments in (so_far or {}).items()}
        self._observer.add(data, found)
        return {self._paths[id(layer)]: moments for layer, moments in found.items()}

    def value(self, found: dict[str, PopulationMoments], index: int, count: int) -> PopulationStatistics:
        """The statistics of a shard, with those of the levels before."""
        return PopulationStatistics(
            self.earlier | found,
            self.estimator,
            self.levels,
            self.level,
            (count, frozenset([index])),
            self.fingerprint,
            tuple(self.layers),
        )


def estimate_shard(
    model: keras.Model,
    data: Any,
    shard: Any,
    save: str | os.PathLike[str] | None,
    earlier: PopulationStatistics | None,
    *,
    presharded: bool,
    layers: Layers,
    estimator: str,
    batch_size: int | None,
    steps: int | None,
    progress: bool,
) -> ShardResult:
    """See `keras_bn.recalibrate`, which has the same arguments."""
    index, count = checked_shard(shard)
    source = batches(model, data, batch_size, steps)
    example, stream = peek(source)
    whole = source.total if source.total is None or not presharded else source.total * count
    # As one job over all of the data would, since a compiled model may round otherwise.
    observer = ShardObserver(model, example, layers, estimator, earlier, worth_compiling(whole))
    mine = stream if presharded else islice(stream, index, None, count)
    total = source.total if presharded or source.total is None else len(range(index, source.total, count))
    with tqdm(total=total, desc=f"shard {index}/{count}", unit="batch", disable=not progress) as bar:
        found = observer.observe(each_followed_by(bar.update, mine))
    if not found:
        raise KerasBNError(
            f"Shard {index} of {count} has no batch: the data has fewer batches than shards. Use fewer "
            "shards or a smaller batch_size."
        )
    value = observer.value(found, index, count)
    if save is not None:
        value.save(save)
    for path, moments in found.items():
        set_statistics(observer.layers[path], moments)
    rows = tuple(_row(path, layer, found, value) for path, layer in observer.layers.items())
    note = (
        f"{estimator} estimator, shard {index} of {count}, level {value.level + 1} of {len(value.levels)}; "
        "the statistics in the model are those of this shard"
    )
    return ShardResult.of(observer.model, Report("recalibrate", rows, None, (note, _next(value))), value)


def apply(
    model: keras.Model, statistics: PopulationStatistics, in_place: bool = False, prior: float = 0
) -> SurgeryResult:
    """Set the population statistics of a model to merged ones.

    Args:
        model: The model that the statistics were computed with. It is not changed, unless `in_place` is True.
        statistics: Merged statistics of every shard and, for the sequential estimator, every level.
        in_place: If True, change `model` itself.
        prior: Number of values per channel that the present statistics of the model count as.

    Raises:
        KerasBNError: If a shard or a level is missing, or if the statistics belong to another model or other
            weights.
    """
    check_number("prior", prior)
    statistics.check_complete()
    if remaining := statistics.remaining_levels:
        raise KerasBNError(
            f"The statistics of {remaining} of {len(statistics.levels)} levels are missing; pass these to "
            "recalibrate(..., shard=(i, n), statistics=...) to estimate the next level, and merge the shards."
        )
    known = {found.path: found.layer for found in batch_normalizations(model)}
    statistics = statistics.with_paths(tuple(known))
    chosen = [known[path] for path in statistics.moments]
    estimated = [v for layer in chosen for v in (layer.moving_mean, layer.moving_variance)]
    statistics.check_fits(statistics.estimator, statistics.levels, fingerprint(model, estimated))
    clone = None if in_place else Clone(model)
    result = model if clone is None else clone.model
    rows = []
    with statistics_kept(result, on_error_only=True):
        for path, layer in known.items():
            target = layer if clone is None else clone.of(layer)
            moments = statistics.moments.get(path)
            what = (
                ("left alone", "not among the statistics")
                if moments is None
                else set_statistics(target, moments, prior)
            )
            rows.append(Row(path, type(layer).__name__, *what))
    return SurgeryResult(result, Report("recalibrate", tuple(rows), None, (str(statistics),)))


def _row(path: str, layer: Any, found: dict[str, PopulationMoments], value: PopulationStatistics) -> Row:
    kind = type(layer).__name__
    if path in found:
        return Row(path, kind, "observed", f"{found[path].count} values per channel")
    levels = [number for number, level in enumerate(value.levels) if path in level]
    if not levels:
        return Row(path, kind, "left alone", "not chosen, or never called")
    return Row(path, kind, "left alone", f"level {levels[0] + 1} of {len(value.levels)}")


def _next(value: PopulationStatistics) -> str:
    count = value.shards[0]
    merged = "" if count == 1 else f"merge the {count} shards, then "
    if value.remaining_levels:
        return f"{merged}pass the result as statistics= for level {value.level + 2} of {len(value.levels)}"
    return f"{merged}apply the result with recalibrate(model, statistics=...)"
