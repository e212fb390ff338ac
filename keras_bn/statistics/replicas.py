"""Moments of the batches of all replicas together, with each backend's means of distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_bn.statistics.moments import Moments, merged

BACKENDS = ("tensorflow", "torch", "jax")


def exist() -> bool:
    """Whether this batch is one of several.

    - TensorFlow: in a replica of a `tf.distribute` strategy, inside `strategy.run`.
    - PyTorch: in a process of the default group of `torch.distributed`.
    - JAX: never. A sharded array is one whole array to the program, so its moments are the batch's.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        return context is not None and context.num_replicas_in_sync > 1
    if backend == "torch":
        from torch import distributed

        return (
            distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        )
    return False


def together(moments: Moments) -> Moments:
    """Moments of all replicas' batches together, with one all-reduce, differentiable; where `exist()`.

    Each replica writes count, mean and variance into its own row of a table of zeros. The sum of the tables
    has the rows of all replicas, which are merged without cancellation.
    """
    own = ops.stack([ops.broadcast_to(v, ops.shape(moments.mean)) for v in moments])
    sum_of_tables, rank, size = _group()
    rows = ops.reshape(ops.arange(size) == rank, (size, *[1] * len(own.shape)))
    # where, not a product with zero: a NaN of one replica must not reach the rows of the others twice.
    table = sum_of_tables(ops.where(rows, own[None], ops.zeros((), own.dtype)))
    return merged(Moments(table[:, 0], table[:, 1], table[:, 2]))


def _group() -> tuple[Callable[[Any], Any], Any, int]:
    """The sum over the replicas, the number of this one, and how many there are."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()

        def total(table: Any) -> Any:
            return context.all_reduce(tf.distribute.ReduceOp.SUM, table)

        return total, context.replica_id_in_sync_group, context.num_replicas_in_sync
    from torch import distributed
    from torch.distributed.nn.functional import all_reduce

    return all_reduce, distributed.get_rank(), distributed.get_world_size()
