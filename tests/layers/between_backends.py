"""Saves every layer on the backend that Keras runs on, then loads what other backends saved.

    python between_backends.py FOLDER BACKEND...

It writes FOLDER/<its backend>, prints a line, waits for a line of input, and compares with FOLDER/BACKEND.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers as L
from keras import ops

import keras_bn

IMAGES = np.random.default_rng(0).normal(1, 2, (8, 5, 5, 3)).astype("float32")
SEQUENCES = np.random.default_rng(1).integers(0, 9, (8, 6)).astype("int32")


def images(*stack):
    return keras.Sequential([keras.Input((5, 5, 3)), *stack, L.Flatten(), L.Dense(2)])


def convolution(layer, **options):
    return images(L.Conv2D(4, 2, use_bias=False, **options), layer)


def networks():
    """A network for each layer of the package, and two that surgery makes."""
    bn = keras_bn.BatchNormalization
    return {
        "plain": convolution(bn()),
        "cumulative": convolution(bn(momentum=None)),
        "biased": convolution(bn(unbiased_variance=False, epsilon=1e-5)),
        "without_offset_and_scale": convolution(bn(center=False, scale=False)),
        "other_axis": convolution(bn(axis=1)),
        "half": convolution(bn(dtype="mixed_bfloat16")),
        "renorm": convolution(keras_bn.BatchRenormalization()),
        "ghost": convolution(keras_bn.GhostBatchNormalization(4)),
        "accumulated": convolution(keras_bn.AccumulatedBatchNormalization(2)),
        "cross_iteration": images(keras_bn.CrossIterationNormalization(L.Conv2D(4, 1, use_bias=False), 3)),
        "sequence": keras.Sequential(
            [
                keras.Input((6,), dtype="int32"),
                L.Embedding(9, 4, mask_zero=True),
                keras_bn.SequenceBatchNormalization(4),
                L.LSTM(3),
            ]
        ),
        "joined": images(
            keras_bn.JoinedBatchNormalization(L.Conv2D(4, 2), L.BatchNormalization(name="bn"), name="bn")
        ),
        "frozen": convolution(
            keras_bn.FrozenBatchNormalization(keras.saving.serialize_keras_object(L.BatchNormalization()))
        ),
        "affine": convolution(keras_bn.ChannelAffine()),
        "Keras": convolution(L.BatchNormalization()),
        "converted": keras_bn.convert(convolution(L.BatchNormalization())).model,
        "retrofitted": keras_bn.retrofit(images(L.Conv2D(4, 2)), IMAGES, progress=False).model,
    }


def inputs_of(name):
    return SEQUENCES if name == "sequence" else IMAGES


def randomized(model, x):
    """Weights that are others on each backend, and states as training leaves them."""
    random = np.random.default_rng(len(keras.backend.backend()))
    for variable in model.trainable_variables:
        variable.assign(random.uniform(0.2, 1, variable.shape))
    for _ in range(3):  # states of variants: averages, memories, counters
        model(x, training=True)


def answers(model, x):
    """At inference, and of a training step, which continues from the state that was loaded."""
    results = [model(x, training=training) for training in (False, True, False)]
    return [ops.convert_to_numpy(ops.cast(result, "float32")) for result in results]


def write(models, folder):
    folder.mkdir(parents=True)
    for name, model in models.items():
        x = inputs_of(name)
        randomized(model, x)
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")
        np.savez(folder / f"{name}.npz", *answers(model, x))


def compare(models, folder):
    for name, other in models.items():
        expected = list(np.load(folder / f"{name}.npz").values())
        other.load_weights(folder / f"{name}.weights.h5")
        loaded = keras.saving.load_model(folder / f"{name}.keras")
        # Each backend adds float32 numbers up in an order of its own; a bfloat16 has eight bits.
        tolerance = 3e-2 if name == "half" else 2e-5
        for form, model in ((".weights.h5", other), (".keras", loaded)):
            for value, old in zip(answers(model, inputs_of(name)), expected, strict=True):
                np.testing.assert_allclose(
                    value, old, rtol=0, atol=tolerance * np.abs(old).max(), err_msg=f"{folder} {name}{form}"
                )


def main(folder, backends):
    models = networks()
    write(models, folder / keras.backend.backend())
    print("written", flush=True)
    sys.stdin.readline()
    for backend in backends:
        compare(models, folder / backend)
        print(backend, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
