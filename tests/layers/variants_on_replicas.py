"""The population statistics of every variant on two replicas of a `MirroredStrategy`, beside each one alone.

    python variants_on_replicas.py RESULT.npz

For each layer, `found_*` is moving_mean and moving_variance after the steps on two replicas, and
`expected_*` the law: the mean over the replicas of what the layer learns from each one's batches alone, or,
synchronized, what it learns from the batches of both put together.
"""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

import keras_bn

# A layer, and the number of steps.
LAYERS = {
    "plain": (lambda s: keras_bn.BatchNormalization(momentum=0.0, synchronized=s), 1),
    "cumulative": (lambda s: keras_bn.BatchNormalization(momentum=None, synchronized=s), 2),
    "renorm": (lambda s: keras_bn.BatchRenormalization(momentum=0.5, synchronized=s), 1),
    "ghost": (lambda s: keras_bn.GhostBatchNormalization(2, momentum=0.5, synchronized=s), 1),
    "accumulated": (lambda s: keras_bn.AccumulatedBatchNormalization(2, momentum=0.0, synchronized=s), 2),
    "sequence": (lambda s: keras_bn.SequenceBatchNormalization(3, momentum=0.5), 1),
}


def statistics(layer):
    return np.stack([layer.moving_mean.numpy(), layer.moving_variance.numpy()])


def alone(make, batches):
    layer = make(False)
    for batch in batches:
        layer(batch, training=True)
    return statistics(layer)


def main(path):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    rng = np.random.default_rng(0)
    # The means of the replicas are far apart, so that their average is neither's.
    data = rng.normal([[[[[0.0]]]], [[[[100.0]]]]], 1, (2, 2, 4, 3, 2)).astype("float32")
    results = {}
    for name, (make, steps) in LAYERS.items():
        for synchronized in (False, True):
            if synchronized and name == "sequence":
                continue
            with strategy.scope():
                layer = make(synchronized)
                layer.build(data.shape[2:])

            @tf.function
            def step(batch, layer=layer):
                strategy.run(lambda x: layer(x, training=True), (batch,))

            for index in range(steps):
                step(
                    strategy.experimental_distribute_values_from_function(
                        lambda context, i=index: tf.constant(data[context.replica_id_in_sync_group, i])
                    )
                )
            key = f"{name}_{synchronized}"
            results[f"found_{key}"] = statistics(layer)
            if synchronized:
                expected = alone(make, [np.concatenate([data[0, i], data[1, i]]) for i in range(steps)])
            else:
                expected = np.mean([alone(make, data[r, :steps]) for r in range(2)], 0)
            results[f"expected_{key}"] = expected
    np.savez(path, **results)


if __name__ == "__main__":
    main(sys.argv[1])
