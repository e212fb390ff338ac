"""Population moments of data that is spread over the workers of a `tf.distribute` strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_bn.statistics.population import PopulationMoments


def across_workers(moments: Sequence[PopulationMoments]) -> list[PopulationMoments]:
    """The moments over the data of all workers, the same on every worker.

    All workers of the strategy in scope call this function, each with its own moments of the same layers in
    the same order. It takes one all-gather. Without a strategy of several workers, the moments are returned
    unchanged.
    """
    if keras.backend.backend() != "tensorflow":
        return list(moments)
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    workers = _worker_count(strategy)
    if workers == 1:
        return list(moments)
    own = np.concatenate([_row(each) for each in moments])
    local = strategy.num_replicas_in_sync // workers

    def gather() -> Any:
        context = tf.distribute.get_replica_context()
        # Each worker counts once, however many devices it has.
        speaks = tf.cast(context.replica_id_in_sync_group % local == 0, tf.float64)
        return context.all_gather(speaks * own[np.newaxis], axis=0)

    rows = strategy.experimental_local_results(strategy.run(gather))[0].numpy()
    result = [PopulationMoments(each.channels) for each in moments]
    for row in rows:
        start = 0
        for merged in result:
            count, mean, variance = np.split(row[start : start + _size(merged)], [1, 1 + merged.channels])
            merged.update_moments(int(count[0]), mean, variance)
            start += _size(merged)
    return result


def _size(moments: PopulationMoments) -> int:
    return 1 + 2 * moments.channels


def _row(moments: PopulationMoments) -> np.ndarray:
    if not moments.count:
        return np.zeros(_size(moments))
    return np.concatenate([[moments.count], moments.mean, moments.variance])


def _worker_count(strategy: Any) -> int:
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict() if resolver else {}
    return max(1, sum(len(cluster.get(job, ())) for job in ("chief", "worker")))
