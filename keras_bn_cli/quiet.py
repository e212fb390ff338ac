"""Importing Keras and its backend without the lines that TensorFlow writes while it starts."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def imported() -> Any:
    """The package `keras_bn`, imported with TensorFlow's start-up lines held back."""
    if "keras_bn" not in sys.modules:
        # Errors only. The first lines that TensorFlow writes ignore this setting.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with held_back():
            import keras_bn

            _start_backend()
    import keras_bn

    return keras_bn


def _start_backend() -> None:
    """Make TensorFlow look for its devices now, which it reports as well."""
    if tensorflow := sys.modules.get("tensorflow"):
        tensorflow.zeros(1)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold back what is written to standard error, by C++ too; show it after all if there is an exception."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        except Exception:
            sys.stderr.flush()
            file.seek(0)
            os.write(kept, file.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
