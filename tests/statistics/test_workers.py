"""Data spread over two worker processes: the moments of the whole on both."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_bn.statistics.population import PopulationMoments
from keras_bn.statistics.workers import across_workers
from tests.ports import free_ports
from tests.processes import Program

SCRIPT = """
import sys
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import keras, numpy as np, keras_bn
data = np.random.default_rng(0).normal([1, 2, 3], 1, (30, 8, 3))
with strategy.scope():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((8, 3)), keras.layers.Conv1D(4, 3), keras.layers.BatchNormalization(),
        keras.layers.ReLU(), keras.layers.Conv1D(5, 3), keras_bn.BatchNormalization(),
        keras.layers.Dense(2),
    ])
    # Shards of different sizes, cut differently.
    rank = int(sys.argv[1])
    shard = {"0": data[:7], "1": data[7:], "-1": data}[sys.argv[1]]
    result = keras_bn.recalibrate(model, shard, batch_size=4 if rank else 3, progress=False).model
np.savez(sys.argv[2], *[np.array(w) for w in result.get_weights()])
"""


def started(script, rank, cluster, path):
    environment = {"CUDA_VISIBLE_DEVICES": "-1"}
    if cluster:
        task = {"cluster": {"worker": cluster}, "task": {"type": "worker", "index": rank}}
        environment["TF_CONFIG"] = json.dumps(task)
    return Program(script, [rank, path], **environment)


@pytest.mark.slow
def test_two_workers_find_what_one_finds_with_all_data(tmp_path):
    cluster = [f"localhost:{port}" for port in free_ports(2)]
    paths = [tmp_path / f"{rank}.npz" for rank in (0, 1, -1)]
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    processes = [started(script, rank, cluster, path) for rank, path in zip((0, 1), paths, strict=False)]
    processes.append(started(script, -1, None, paths[2]))
    try:
        for process in processes:
            process.wait(180)
    finally:
        for process in processes:
            process.kill()
    first, second, alone = ([np.load(path)[name] for name in np.load(path).files] for path in paths)
    for a, b, c in zip(first, second, alone, strict=True):
        np.testing.assert_array_equal(a, b)
        # Activations are float32 and their kernels sum in an order that depends on the batch.
        np.testing.assert_allclose(a, c, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", [tf.distribute.get_strategy, tf.distribute.OneDeviceStrategy])
def test_one_worker_has_nothing_to_gather(strategy):
    moments = PopulationMoments(2)
    moments.update(np.ones((3, 2)))
    strategy = strategy("CPU:0") if strategy is tf.distribute.OneDeviceStrategy else strategy()
    with strategy.scope():
        assert across_workers([moments])[0] is moments
