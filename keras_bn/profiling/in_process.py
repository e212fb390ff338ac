"""A version in a session of this process, as a stand-in for a server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_bn.profiling.measurement import Measurement, Setting, ask, measured
from keras_bn.saving.examples import batch_size, generated

NAME = "a TensorFlow session in this process"


@contextmanager
def engine(path: Path, setting: Setting) -> Iterator[Callable[[Setting, float], Measurement]]:
    """Load a version with the threads of `setting`; what is yielded measures a setting for some seconds.

    A batch is put together without waiting: of 16 clients and batches of 4, four threads ask for 4 rows each.
    A server's queue costs more than that, so batching looks better here than it is.
    """
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=setting.threads,
        inter_op_parallelism_threads=setting.threads,
        use_per_session_threads=True,
    )
    with closing(tf.compat.v1.Session(graph=tf.Graph(), config=config)) as session:
        with session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(path))
        signature = meta_graph.signature_def[tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY]
        names = list(signature.inputs)
        fetches = [info.name for info in signature.outputs.values()]
        call = session.make_callable(fetches, [signature.inputs[name].name for name in names])

        def measure(asked: Setting, seconds: float) -> Measurement:
            rows = min(asked.batch_size, asked.clients)
            request = requests(path, rows)
            values = [request[name] for name in names]
            latencies, throughput = ask(lambda: call(*values), asked.clients // rows, seconds, rows)
            return measured(asked, latencies, throughput, resident(os.getpid()))

        yield measure


def requests(path: Path, rows: int) -> dict[str, np.ndarray]:
    """Made-up inputs of `rows` examples for the default signature of a version."""
    from keras_bn.saving.session import signature_inputs

    inputs = signature_inputs(path)
    fixed = batch_size(inputs)
    return next(generated(inputs, fixed or rows))


def resident(process: int) -> int:
    """The resident memory of a process in bytes, 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
