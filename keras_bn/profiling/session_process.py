"""A version in a session of a process of its own.

`python -m keras_bn.profiling.session_process VERSION THREADS` writes the line "ready" to standard output when
it has loaded the version. Then it reads a line of JSON for each setting to measure from standard input, and
writes the measurement as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import tensorflow as tf

from keras_bn.profiling.in_process import requests, resident
from keras_bn.profiling.measurement import Setting, ask, measured
from keras_bn.saving.session import session_config


def load(path: Path, threads: int) -> tuple[tf.compat.v1.Session, dict[str, str], dict[str, str]]:
    """A session with a version, and the tensors that are its inputs and outputs, by name."""
    config = session_config(path)
    config.intra_op_parallelism_threads = threads
    config.inter_op_parallelism_threads = threads
    config.use_per_session_threads = True
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    with session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(path))
    signature = meta_graph.signature_def[tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY]
    # No part of the meta graph, which would stay in memory with it.
    inputs, outputs = (
        {name: info.name for name, info in infos.items()} for infos in (signature.inputs, signature.outputs)
    )
    return session, inputs, outputs


def main(path: Path, threads: int) -> None:
    """Measure what standard input asks for until it ends."""
    # What TensorFlow prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    session, inputs, outputs = load(path, threads)
    with closing(session):
        call = session.make_callable(list(outputs.values()), list(inputs.values()))
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            setting = Setting(**asked["setting"])
            rows = min(setting.batch_size, setting.clients)
            request = requests(path, rows)
            run = partial(call, *(request[name] for name in inputs))
            latencies, throughput = ask(run, setting.clients // rows, asked["seconds"], rows)
            found = measured(setting, latencies, throughput, resident(os.getpid()))
            print(json.dumps(asdict(found)), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
