"""Models in float64 whose every weight counts, folded and compared with what they were."""

import keras
import numpy as np
from keras import ops

import keras_bn
from keras_bn.surgery.normalizations import is_batch_normalization

L = keras.layers
# Models in float64, so that a wrong term shows and rounding does not: 1e-12 of the scale is some 5000 ulps.
F64 = {"dtype": "float64"}
# Only on TensorFlow do all of Keras's layers compute in float64 where they are asked to.
TIGHT = 1e-12 if keras.backend.backend() == "tensorflow" else 1e-5
RANGES = {"gamma": (-2, 2), "beta": (-1, 1), "moving_mean": (-1, 1), "moving_variance": (0.2, 3)}


def scramble(model, seed=0):
    """Give every weight a value that no two channels share; gamma takes both signs."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if is_batch_normalization(layer):
            for weight in layer.weights:
                weight.assign(random.uniform(*RANGES[weight.name], weight.shape))
        elif not layer._layers:
            for weight in layer.weights:
                if keras.backend.is_float_dtype(weight.dtype):  # a dropout's seed is none
                    weight.assign(random.normal(0, 0.5, weight.shape))
    return model


def sequential(shape, *layers, dtype="float64"):
    return scramble(keras.Sequential([keras.Input(shape, dtype=dtype), *layers]))


def outputs(model, x):
    return [ops.convert_to_numpy(each) for each in keras.tree.flatten(model(x, training=False))]


def folded(model, tolerance=TIGHT, seed=1):
    """Fold, check that the outputs stay and that the donor does, and return model and rows by layer."""
    before = [array.copy() for array in model.get_weights()]
    config = model.get_config()
    result = keras_bn.fold(model)
    assert model.get_config() == config
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    random = np.random.default_rng(seed)
    x = [random.normal(size=(3, *(n or 6 for n in t.shape[1:]))).astype(t.dtype) for t in model.inputs]
    x = x if len(x) > 1 else x[0]
    for old, new in zip(outputs(model, x), outputs(result.model, x), strict=True):
        assert float(np.abs(old).max()) > 0
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * float(np.abs(old).max()))
    return result.model, {row.layer: row for row in result.report.rows}


def kinds(model):
    """The classes of the layers, but for the Identity that keeps the name of an output."""
    names = [type(layer).__name__ for layer in model.layers]
    return names[:-1] if names[-1] == "Identity" else names


def without_offset(layer):
    layer.beta.assign(layer.beta * 0)
    layer.moving_mean.assign(layer.moving_mean * 0)
