"""Giving memory back to the system when a version of a model has been loaded, or is gone."""

import contextlib
import ctypes
import gc

# The part of glibc's allocator that returns free pages; no other C library needs or has it.
_trim = None
with contextlib.suppress(OSError, AttributeError, TypeError):
    _trim = ctypes.CDLL(None).malloc_trim


def keep_what_is_here() -> None:
    """Take all objects there are now, those of the imported modules, out of what is looked through later.

    There are hundreds of thousands, and requests wait while they are looked through.
    """
    gc.freeze()


def give_back() -> None:
    """Free what only cycles of references hold, as the graph of a session, and return free pages."""
    gc.collect()
    if _trim is not None:
        _trim(0)
