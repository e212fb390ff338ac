"""Every private name of TensorFlow that this package uses, and the public alternative that was tried.

Tested on TensorFlow 2.20 and 2.21. `tests/test_private_names.py` uses each of them, so a release that renames
one fails there first. TensorFlow need not be installed: it is imported where a function needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from keras_bn.errors import KerasBNError


def require_tensorflow(what: str) -> None:
    """Raise unless TensorFlow is installed; `what` needs it."""
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise KerasBNError(
            f"{what} needs TensorFlow, which cannot be imported ({error}); install it with "
            "pip install 'keras-bn[tensorflow]'."
        ) from error


def compiles_with_xla() -> bool:
    """Whether the graph that is being traced is compiled by XLA; `jit_compile` is not visible from inside."""
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    return not tf.executing_eagerly() and GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def optimize_graph(meta_graph: Any, config: Any) -> Any:
    """The graph of a MetaGraphDef after Grappler, TensorFlow's graph optimizer, with a ConfigProto's options.

    Grappler has no public entry of its own: a session runs it, and keeps what it made.
    """
    from tensorflow.python.grappler import tf_optimizer

    return tf_optimizer.OptimizeGraph(config, meta_graph, strip_default_attributes=False)


_PACKED = {
    *("Conv2D", "_FusedConv2D", "DepthwiseConv2dNative", "_FusedDepthwiseConv2dNative"),
    "_FusedMatMul",
}


def use_onednn(node: Any, *, fixed_filter: bool) -> None:
    """Make a NodeDef the operation of oneDNN, which packs a fixed filter at the first call.

    TensorFlow makes the same of it when it loads a graph, but packs the filter at every call unless it is a
    constant. The environment variable TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1 does so for all operations of a
    process, also for those whose filter is computed, and gives wrong results for these.
    """
    if node.op in _PACKED and node.attr["T"].type in (1, 14):  # float32, bfloat16
        node.op = f"_MklNative{node.op.removeprefix('_')}"
        node.attr["_kernel"].s = b"MklNameChangeOp"
        node.attr["is_filter_const"].b = fixed_filter


# The conversion to 16 bits takes its lists of operations from the environment: those that it never converts,
# and those that it converts only beside others.
_NEVER_CONVERTED = "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_DENYLIST_ADD"
_NOT_BETWEEN_CONVERTED = "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_CLEARLIST_REMOVE"


@contextmanager
def never_converted(operations: Sequence[str]) -> Iterator[None]:
    """Let the conversion to 16 bits leave these operations alone."""
    names = ",".join(operations)
    before = {name: os.environ.get(name) for name in (_NEVER_CONVERTED, _NOT_BETWEEN_CONVERTED)}
    os.environ.update({name: ",".join(filter(None, [value, names])) for name, value in before.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def is_compiled_function(value: Any) -> bool:
    """Whether it is what `tf.function` returns."""
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(value, tf.types.experimental.PolymorphicFunction)


def compiled_alike(function: Any, python_function: Callable[..., Any]) -> Any:
    """Another Python function compiled with the options of `function`, which it has not traced yet.

    `tf.function` is public, but the options that a function was compiled with are not.
    """
    return function._clone(python_function)
