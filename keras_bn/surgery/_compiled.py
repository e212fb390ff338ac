"""A function of tensors run as fast as the backend can, and run step by step where that is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_bn.surgery._state import variables_of

Function = Callable[[list[Any]], Any]


def compiled(
    function: Function, operations: Sequence[Any], example: list[Any], shapes: list[tuple[int | None, ...]]
) -> Function:
    """`function`, compiled for the backend at hand: tf.function, jax.jit, or torch without gradients.

    Args:
        function: of one list of tensors, None in the place of one that is missing. It may return any
            structure of tensors.
        operations: the layers it calls. Their variables may be read, and changed, by it.
        example: the list that it will be called with first.
        shapes: of the tensors, with None for a length that may vary between calls.

    Raises:
        Exception: whatever the backend raises where the function cannot be compiled. JAX compiles when the
            result is first called.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _tensorflow(function, example, shapes)
    if backend == "jax":
        return _jax(function, operations)
    return without_gradients(function)


def worth_compiling(batches: int | None) -> bool:
    """Whether compiling pays for so many batches, None if their number is not known.

    TensorFlow takes as long to trace a layer as to run it on some ten small batches. JAX compiles either way,
    a whole function or each operation, and PyTorch neither.
    """
    return keras.backend.backend() != "tensorflow" or batches is None or batches > 8


def as_tensor(leaf: Any) -> Any:
    """An array or tensor as a tensor of the backend, of its own dtype; what is sparse, or None, as it is."""
    if leaf is None or not hasattr(leaf, "__array__"):
        return leaf
    # PyTorch would make float32 of float64, which JAX has not got unless it is asked for.
    keep = keras.backend.backend() == "torch" and getattr(leaf, "dtype", None) == "float64"
    return keras.ops.convert_to_tensor(leaf, dtype="float64" if keep else None)


def is_in_host_memory(tensor: Any) -> bool:
    """Whether a tensor with values is in the memory of the processor, not of an accelerator."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return "CPU" in tensor.device
    if backend == "jax":
        return all(device.platform == "cpu" for device in tensor.devices())
    return bool(tensor.device.type == "cpu")


def size_of(dtype: Any) -> int:
    """The bytes of one value of a dtype."""
    name = keras.backend.standardize_dtype(dtype).partition("_")[0]  # float8_e4m3fn
    digits = "".join(filter(str.isdigit, name))
    return -(-int(digits or 8) // 8)


def without_gradients(function: Function) -> Function:
    """`function` run as it stands, keeping nothing for a gradient."""
    if keras.backend.backend() != "torch":
        return function
    import torch

    return torch.no_grad()(function)


@contextmanager
def step_by_step() -> Iterator[None]:
    """Loops and compiled functions inside of layers run step by step in Python, where values can be seen."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        before = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)
        try:
            yield
        finally:
            tf.config.run_functions_eagerly(before)
    elif backend == "jax":
        import jax

        with jax.disable_jit():
            yield
    else:
        yield


def _tensorflow(function: Function, example: list[Any], shapes: list[tuple[int | None, ...]]) -> Function:
    import tensorflow as tf

    def specification(tensor: Any, shape: tuple[int | None, ...]) -> Any:
        if tensor is None:
            return None
        kind = tf.SparseTensorSpec if isinstance(tensor, tf.SparseTensor) else tf.TensorSpec
        return kind(shape, tensor.dtype)

    traced = tf.function(function, autograph=False)
    # Traced for any number of examples before it is called, lest a shorter last batch trace it again.
    known = [specification(*pair) for pair in zip(example, shapes, strict=True)]
    concrete = traced.get_concrete_function(known)

    def run(values: list[Any]) -> Any:
        try:
            return concrete(values)  # in two thirds of the time that it takes to look the trace up
        except (TypeError, ValueError):  # values of another shape
            return traced(values)

    return run


def _jax(function: Function, operations: Sequence[Any]) -> Function:
    import jax

    variables = list({id(v): v for each in operations for v in variables_of(each)}.values())

    def pure(state: list[Any], values: list[Any]) -> tuple[Any, dict[int, Any]]:
        with keras.StatelessScope(state_mapping=list(zip(variables, state, strict=True))) as scope:
            result = function(values)
        after = [scope.get_current_value(variable) for variable in variables]
        return result, {i: new for i, new in enumerate(after) if new is not state[i]}

    jitted = jax.jit(pure)

    def run(values: list[Any]) -> Any:
        result, changed = jitted([variable.value for variable in variables], values)
        for index, value in changed.items():
            variables[index].assign(value)
        return result

    return run
