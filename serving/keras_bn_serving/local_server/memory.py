"""Keeping what models leave behind out of the process: memory goes back to the system when it is freed.

glibc maps a block from some size on, and unmaps it when it is freed. Smaller ones lie in arenas, one for a
few threads each, whose free end stays with the process. Once a large block has been freed, that size is
raised, up to 32 MiB, which is right for requests: they come again, and find their pages. The weights of a
version would lie in the arena of the thread that happened to load it, and those of many leave pages in all.
"""

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Iterator

# These parts of glibc's allocator; no other C library needs or has them.
_trim = _set_option = None
with contextlib.suppress(OSError, AttributeError, TypeError):
    _trim = ctypes.CDLL(None).malloc_trim
    _set_option = ctypes.CDLL(None).mallopt
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_CHOSEN = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
_MIB = 1 << 20
_MOST_MAPPED = 32 * _MIB  # the highest that glibc accepts, and to which it goes by itself

_lock = threading.Lock()
_held = 0


def keep_what_is_here() -> None:
    """Take all objects there are now, those of the imported modules, out of what is looked through later.

    There are hundreds of thousands, and requests wait while they are looked through.
    """
    gc.freeze()


@contextlib.contextmanager
def of_models() -> Iterator[None]:
    """Map blocks of memory from 1 MiB on, so that they are unmapped when they are freed.

    This holds for the whole process: larger requests take longer meanwhile.
    """
    _hold(1)
    try:
        yield
    finally:
        _hold(-1)


def _hold(change: int) -> None:
    global _held
    with _lock:
        _held += change
        # Settings of the operator, which glibc takes from there, stay.
        if _set_option is not None and not _CHOSEN & os.environ.keys():
            size = _MIB if _held else _MOST_MAPPED
            _set_option(_MMAP_THRESHOLD, size)
            _set_option(_TRIM_THRESHOLD, 2 * size)  # the ratio that glibc keeps


def give_back() -> None:
    """Free what only cycles of references hold, as the graph of a session, and return free pages."""
    gc.collect()
    if _trim is not None:
        _trim(0)
