"""Functions that a backend has compiled, `tf.function`, `jax.jit` and `torch.compile`, of other functions.

A compiled function keeps to the layers that it was traced with. The private names used here are those that
hold the options it was compiled with. `tests/test_private_names.py` uses each. No backend is imported.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

from keras_bn import _tensorflow

_OF_JAX = ("static_argnums", "static_argnames", "donate_argnums", "keep_unused", "inline")
_ORIGINAL = "_torchdynamo_orig_callable"  # PyTorch has no public name for it


def is_compiled_function(value: Any) -> bool:
    """Whether it is what `tf.function`, `jax.jit` or `torch.compile` made of a Python function."""
    return _tensorflow.is_compiled_function(value) or _is_jitted(value) or _is_of_torch(value)


def python_function(function: Any) -> Callable[..., Any]:
    """The function that a compiled one was made of."""
    if _tensorflow.is_compiled_function(function):
        return function.python_function
    return function.__wrapped__ if _is_jitted(function) else getattr(function, _ORIGINAL)


def compiled_alike(function: Any, replacement: Callable[..., Any]) -> Any:
    """Another Python function, compiled as `function` was and not yet traced.

    The static, donated and unused arguments of `jax.jit` are kept, its shardings and the options of
    `torch.compile` are not: these change no value.
    """
    if _tensorflow.is_compiled_function(function):
        return _tensorflow.compiled_alike(function, replacement)
    if _is_jitted(function):
        options = function._jit_info
        if replacement is function.__wrapped__:  # JAX would find the old traces by the function
            replacement = _another(replacement)
        return sys.modules["jax"].jit(replacement, **{name: getattr(options, name) for name in _OF_JAX})
    return sys.modules["torch"].compile(replacement)


def _another(function: Any) -> Callable[..., Any]:
    """A function that does the same and is not equal."""
    if isinstance(function, types.MethodType):
        return types.MethodType(_another(function.__func__), function.__self__)
    if not isinstance(function, types.FunctionType):
        return functools.partial(function)
    name, code = function.__name__, function.__code__
    copy = types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _is_jitted(value: Any) -> bool:
    stages = sys.modules.get("jax.stages")
    # The attribute first: whether an object follows the protocol `Wrapped` takes 20 times as long to find.
    return stages is not None and hasattr(value, "_jit_info") and isinstance(value, stages.Wrapped)


def _is_of_torch(value: Any) -> bool:
    return "torch" in sys.modules and isinstance(value, types.FunctionType) and hasattr(value, _ORIGINAL)
