"""Population statistics on Apache Beam, which runs on one machine, Dataflow, Flink or Spark."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import keras

from keras_bn.errors import KerasBNError
from keras_bn.surgery.population_statistics import PopulationStatistics
from keras_bn.surgery.selection import Layers
from keras_bn.surgery.shards import ShardObserver, loaded

try:
    import apache_beam
except ImportError as error:
    raise KerasBNError(
        "keras_bn.beam needs Apache Beam; install it: pip install 'keras-bn[beam]'."
    ) from error


class EstimateStatistics(apache_beam.CombineFn):
    """Combine batches of inputs into the population statistics of a model's BN layers.

    Each element is one batch in the form that the model takes. Every worker loads the model once. Batches may
    be combined in any grouping and order: the result is the same to the last bit.

    Args:
        model_file: A `.keras` file that every worker can read.
        layers: As for `keras_bn.recalibrate`.
        estimator: `"batch"`, or `"sequential"` for one level.
        statistics: For `"sequential"`, the result for the level before, or its file; None for the first.

    Returns:
        A `PopulationStatistics` of one shard, which `keras_bn.recalibrate(model, statistics=...)` applies.

    Raises:
        KerasBNError: As for `keras_bn.recalibrate`, when the pipeline runs; also if there is no batch.
    """

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        layers: Layers = None,
        estimator: str = "batch",
        statistics: PopulationStatistics | str | os.PathLike[str] | None = None,
    ) -> None:
        self._model_file, self._layers, self._estimator = os.fspath(model_file), layers, estimator
        self._earlier = None if statistics is None else loaded(statistics)
        self._observer: ShardObserver | None = None

    def setup(self) -> None:
        """Load the model in this worker."""
        self._model = keras.models.load_model(self._model_file)

    def create_accumulator(self) -> PopulationStatistics | None:
        """Nothing has been combined yet."""
        return None

    def add_input(self, total: PopulationStatistics | None, batch: Any) -> PopulationStatistics:
        """Add the statistics of one batch, in place, which Beam allows."""
        if self._observer is None:
            self._observer = ShardObserver(self._model, batch, self._layers, self._estimator, self._earlier)
        here = self._observer.levels[self._observer.level]
        so_far = None if total is None else {path: total.moments[path] for path in here}
        return self._observer.value(self._observer.observe([batch], so_far), 0, 1)

    def merge_accumulators(
        self, totals: Iterable[PopulationStatistics | None]
    ) -> PopulationStatistics | None:
        """The statistics of all batches so far."""
        return self._combined(totals)

    def extract_output(self, total: PopulationStatistics | None) -> PopulationStatistics:
        """The result."""
        if total is None:
            raise KerasBNError("There is no batch to estimate statistics from.")
        return total

    def _combined(self, totals: Iterable[PopulationStatistics | None]) -> Any:
        result = None
        for total in totals:
            if total is not None:
                result = total if result is None else result.combine(total)
        return result
