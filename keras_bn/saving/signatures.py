"""The signatures of a Keras model: named tensors in, named tensors out, inference mode only."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_bn.errors import KerasBNError


@dataclass(frozen=True)
class Signature:
    """What a model computes when it is served.

    `inputs` maps names to specifications, whose batch dimension is open unless the model fixes it; `outputs`
    names what `call`, given the inputs in their order, returns as a list.
    """

    inputs: dict[str, tf.TensorSpec]
    outputs: list[str]
    call: Callable[..., list[tf.Tensor]]


def predict_signature(model: keras.Model) -> Signature:
    """Return the inference signature of a Functional or Sequential `model`.

    Names are those of the model's input and output layers, or the keys where the model takes or returns a
    dict.

    Raises:
        KerasBNError: `model` is not a Keras model, is not built, or is subclassed, so that nothing says what
            its inputs are; or Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise KerasBNError(
            f"a SavedModel is made with Keras on TensorFlow, not on {keras.backend.backend()}; save the "
            "model as .keras, and load and export it with KERAS_BACKEND=tensorflow."
        )
    if not isinstance(model, keras.Model):
        raise KerasBNError(f"expected a Keras model, got {type(model).__name__}.")
    if isinstance(model, keras.Sequential) and not model.built:
        raise KerasBNError(
            f"model {model.name!r} is not built; give it an Input or call build() before export."
        )
    if not getattr(model, "inputs", None):
        raise KerasBNError(
            f"model {model.name!r} is a subclassed {type(model).__name__}, which does not say what its "
            "inputs and outputs are; wrap it: keras.Model(inputs, model(inputs))."
        )
    if isinstance(model, keras.Sequential):
        takes, returns = model.inputs[0], model.outputs[0]
    else:
        takes, returns = model.input, model.output
    # What a function of TensorFlow can call an argument; `keras.Model.export` does the same.
    names = [re.sub(r"\W", "_", name, flags=re.ASCII) for name in _names(takes)]
    inputs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name)
        for name, tensor in zip(_unique(names), keras.tree.flatten(takes), strict=True)
    }

    def call(*tensors: tf.Tensor) -> list[tf.Tensor]:
        outputs = model(keras.tree.pack_sequence_as(takes, list(tensors)), training=False)
        return [tf.convert_to_tensor(output) for output in keras.tree.flatten(outputs)]

    return Signature(inputs, _unique(_names(returns)), call)


def _names(structure: Any) -> list[str]:
    """Name every tensor, in the order of `keras.tree.flatten`."""
    tensors = keras.tree.flatten(structure)
    if isinstance(structure, dict) and len(structure) == len(tensors):
        return keras.tree.flatten({key: key for key in structure})
    # A tensor's own name may be keras_tensor_17; the layer that made it has the name the user gave.
    return [tensor._keras_history.operation.name for tensor in tensors]


def _unique(names: list[str]) -> list[str]:
    unique: list[str] = []
    for name in names:
        candidate, copy = name, 0
        while candidate in unique:
            copy += 1
            candidate = f"{name}_{copy}"
        unique.append(candidate)
    return unique
