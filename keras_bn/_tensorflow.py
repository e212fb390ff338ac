"""Every private name of TensorFlow that this package uses, and the public alternative that was tried.

Tested on TensorFlow 2.20 and 2.21. `tests/test_private_names.py` uses each of them, so a release that renames
one fails there first.
"""

from __future__ import annotations

import tensorflow as tf


def compiles_with_xla() -> bool:
    """Whether the graph that is being traced is compiled by XLA; `jit_compile` is not visible from inside."""
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    return not tf.executing_eagerly() and GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def has_onednn() -> bool:
    """Whether convolutions on the CPU are oneDNN's; `tf.sysconfig.get_build_info` does not say."""
    try:
        from tensorflow.python.util._pywrap_util_port import IsMklEnabled
    except ImportError:
        return False
    return bool(IsMklEnabled())
