"""Training steps of a synchronized layer under a tf.distribute strategy, in a process of its own.

    python replicas.py mirrored|workers DATA.npz... RESULT_SUFFIX

Each DATA holds x_0, dy_0, mask_0, the same for replica 1, and the weights gamma and beta. A file beside it,
with the suffix, gets y, dx, dgamma and dbeta of each replica that ran in this process, and the layer's
weights after the step.
"""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

from keras_bn import BatchNormalization


def main(kind, *data_paths, suffix):
    if kind == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        replicas = [0, 1]
    else:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        replicas = [strategy.cluster_resolver.task_id]
    for path in data_paths:
        np.savez(f"{path}{suffix}", **one_step(strategy, replicas, np.load(path)))


def one_step(strategy, replicas, data):
    with strategy.scope():
        layer = BatchNormalization(synchronized=True, momentum=0.5, epsilon=1e-3)
        layer.build(data["x_0"].shape)
        layer.gamma.assign(data["gamma"])
        layer.beta.assign(data["beta"])

    def replica_step(x, dy, mask):
        gamma, beta = layer.gamma.value, layer.beta.value
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
        dx, dgamma, dbeta = tape.gradient(y, [x, gamma, beta], dy)
        return {"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta}

    @tf.function
    def step(*arguments):
        return strategy.run(replica_step, arguments)

    found = {}
    for name, per_replica in step(*(_spread(strategy, data, name) for name in ("x", "dy", "mask"))).items():
        for replica, value in zip(replicas, strategy.experimental_local_results(per_replica), strict=True):
            found[f"{name}_{replica}"] = value.numpy()
    return {**found, "weights": np.stack(layer.get_weights())}


def _spread(strategy, data, name):
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(data[f"{name}_{context.replica_id_in_sync_group}"])
    )


if __name__ == "__main__":
    main(*sys.argv[1:-1], suffix=sys.argv[-1])
