"""Three training steps on every layer under `DataParallel`, in a process with as many devices as XLA is told.

python sharded.py RESULT.npz
"""

import sys

import jax
import keras
import numpy as np

import keras_bn
from keras_bn.kernels import jax as kernel


def layers():
    yield keras_bn.BatchNormalization(momentum=0.5)
    yield keras_bn.BatchNormalization(momentum=None, synchronized=True)
    yield keras_bn.BatchRenormalization(r_max=2.0, d_max=1.0)
    yield keras_bn.GhostBatchNormalization(4)
    yield keras_bn.AccumulatedBatchNormalization(2)
    yield keras_bn.SequenceBatchNormalization(3)


def main(path):
    devices = jax.devices()
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    rng = np.random.default_rng(0)
    # Each example has a mean of its own, so that the moments of a shard are not those of the batch.
    x = rng.normal(np.arange(16)[:, None, None], 1, (16, 5, 3)).astype("float32")
    target = rng.normal(size=(16, 5, 3)).astype("float32")
    found = {"devices": np.array(len(devices))}
    for index, layer in enumerate(layers()):
        kernel._SMALL_SIZE = 0 if index == 0 else 2**16  # the first as on large batches
        model = keras.Sequential([keras.Input((5, 3)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, target, batch_size=16, epochs=3, shuffle=False, verbose=0)
        for number, weight in enumerate(model.get_weights()):
            found[f"{index}_{type(layer).__name__}_{number}"] = weight
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
