"""The signatures of a Keras model: named tensors in, named tensors out, inference mode only."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bn.errors import KerasBNError
from keras_bn.surgery._checks import check_keras_model
from keras_bn.surgery._cloning import layers_in
from keras_bn.surgery._inputs import map_shapes, named_inputs


@dataclass(frozen=True)
class Signature:
    """The function of a served model.

    `inputs` maps names to specifications, whose batch size is unknown unless the model fixes it. `call` takes
    the inputs in their order and returns a list, whose items `outputs` names. `takes` is the structure in
    which the model takes its inputs.
    """

    inputs: dict[str, tf.TensorSpec]
    outputs: list[str]
    call: Callable[..., list[tf.Tensor]]
    takes: Any

    def by_name(self, examples: Any) -> Any:
        """Examples in the structure of the model's inputs as arrays by name; others as they are."""
        try:
            keras.tree.assert_same_structure(self.takes, examples)
        except (TypeError, ValueError):
            return examples
        if not isinstance(examples, (Mapping, list, tuple)):
            return examples
        return dict(zip(self.inputs, keras.tree.flatten(examples), strict=True))


def predict_signature(model: keras.Model, examples: Any = None) -> Signature:
    """Return the inference signature of a `model`.

    Names are those of a Functional model's input and output layers, or the keys if a model takes or returns a
    dict. A subclassed model has no such layers. Its only input is named like the argument of its `call`, and
    its outputs are named output_0, output_1 and so on.

    Args:
        model: A model of any kind.
        examples: Inputs of a subclassed model, an array or a dict of arrays. If None, the shapes that it was
            built with and its dtype are used.

    Raises:
        KerasBNError: If `model` is not a Keras model, is not built and has no `examples`, or keeps a state
            from one call to the next; or if the Keras backend is not TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise KerasBNError(
            f"a SavedModel is made with Keras on TensorFlow, not on {keras.backend.backend()}; save the "
            "model as model.keras, and export it with KERAS_BACKEND=tensorflow keras-bn export model.keras."
        )
    check_keras_model(model)
    _check_stateless(model)
    known = getattr(model, "inputs", None)
    if isinstance(model, keras.Sequential) and not known and examples is None:
        raise KerasBNError(
            f"model {model.name!r} is not built; give it an Input or call build() before export, or pass "
            "examples."
        )
    if not known:
        return _subclassed_signature(model, examples)
    if isinstance(model, keras.Sequential):
        takes, returns = model.inputs[0], model.outputs[0]
    else:
        takes, returns = model.input, model.output
    # The name that a function of TensorFlow can give an argument; `keras.Model.export` does the same.
    names = [re.sub(r"\W", "_", name, flags=re.ASCII) for name in _names(takes)]
    inputs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name)
        for name, tensor in zip(_unique(names), keras.tree.flatten(takes), strict=True)
    }
    return Signature(inputs, _unique(_names(returns)), _call(model, takes), takes)


def _check_stateless(model: keras.Model) -> None:
    for path, layer in layers_in(model):
        if getattr(layer, "stateful", False):
            raise KerasBNError(
                f"layer {path!r} ({type(layer).__name__}) of model {model.name!r} is stateful: its "
                "answer would depend on the requests before, of whatever client. Export the model built "
                "with stateful=False and the same weights, and let requests hold whole sequences."
            )


def _call(model: keras.Model, structure: Any) -> Callable[..., list[tf.Tensor]]:
    def call(*tensors: tf.Tensor) -> list[tf.Tensor]:
        outputs = model(keras.tree.pack_sequence_as(structure, list(tensors)), training=False)
        return [tf.convert_to_tensor(output) for output in keras.tree.flatten(outputs)]

    return call


def _subclassed_signature(model: keras.Model, examples: Any) -> Signature:
    takes = _example_specs(model, examples) if examples is not None else _build_specs(model)
    argument = next(iter(inspect.signature(model.call).parameters), "inputs")
    single = not isinstance(takes, dict) and len(keras.tree.flatten(takes)) == 1
    names = [argument] if single else keras.tree.flatten(named_inputs(takes, argument))
    names = _unique([re.sub(r"\W", "_", name, flags=re.ASCII) for name in names])
    specs = [
        tf.TensorSpec(spec.shape, spec.dtype, name)
        for name, spec in zip(names, keras.tree.flatten(takes), strict=True)
    ]
    call = _call(model, takes)
    structure: list[Any] = []

    def outputs_of(*tensors: tf.Tensor) -> list[tf.Tensor]:
        outputs = model(keras.tree.pack_sequence_as(takes, list(tensors)), training=False)
        structure.append(outputs)
        return keras.tree.flatten(outputs)

    with keras.StatelessScope():
        tf.function(outputs_of, autograph=False).get_concrete_function(*specs)
    (outputs,) = structure
    count = len(keras.tree.flatten(outputs))
    flat = isinstance(outputs, dict) and len(outputs) == count
    keys = keras.tree.flatten({key: str(key) for key in outputs}) if flat else []
    returned = keys or [f"output_{index}" for index in range(count)]
    return Signature(dict(zip(names, specs, strict=True)), returned, call, takes)


def _example_specs(model: keras.Model, examples: Any) -> Any:
    """The specifications of the inputs of a subclassed model. It is built by a call if necessary."""
    structured = isinstance(examples, Mapping) or hasattr(examples, "shape") or _takes_list(model)
    if structured:
        arrays = keras.tree.map_structure(
            np.asarray, dict(examples) if isinstance(examples, Mapping) else examples
        )
    else:
        arrays = np.asarray(examples)  # rows, as Python's lists

    def spec(array: np.ndarray) -> tf.TensorSpec:
        floating = np.issubdtype(array.dtype, np.floating)
        dtype = model.input_dtype if floating else tf.as_dtype(array.dtype)
        return tf.TensorSpec((None, *array.shape[1:]), dtype)

    if not model.built:
        model(keras.tree.map_structure(lambda array: tf.convert_to_tensor(array[:1]), arrays), training=False)
    return keras.tree.map_structure(spec, arrays)


def _takes_list(model: keras.Model) -> bool:
    """Whether a subclassed model was built for a list of tensors."""
    config = model.get_build_config() if model.built else None
    shapes = (config or {}).get("input_shape")
    return isinstance(shapes, (list, tuple)) and bool(shapes) and isinstance(shapes[0], (list, tuple))


def _build_specs(model: keras.Model) -> Any:
    config = model.get_build_config() if model.built else None
    shapes = (config or {}).get("input_shape")
    if shapes is None:
        raise KerasBNError(
            f"model {model.name!r} is a subclassed {type(model).__name__} that is not built, so that nothing "
            "says what its inputs are; call it on a batch of data once, or pass examples."
        )

    def spec(shape: tuple[int | None, ...]) -> tf.TensorSpec:
        return tf.TensorSpec((None, *shape[1:]), model.input_dtype)

    return map_shapes(spec, shapes)


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
