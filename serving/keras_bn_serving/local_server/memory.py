"""Memory: kept from one request to the next, given back when a version of a model has been loaded or is
gone."""

import contextlib
import ctypes
import gc
import os

# The parts of glibc's allocator that return free pages, and say when; no other C library needs or has them.
_trim = _mallopt = None
with contextlib.suppress(OSError, AttributeError, TypeError):
    _trim, _mallopt = ctypes.CDLL(None).malloc_trim, ctypes.CDLL(None).mallopt
# Parameters of mallopt, and the environment variables of them.
_THRESHOLDS = {"MALLOC_TRIM_THRESHOLD_": (-1, 64 << 20), "MALLOC_MMAP_THRESHOLD_": (-3, 32 << 20)}


def keep_pages() -> None:
    """Reuse the pages of what one request has freed for the next, as far as the environment does not say
    otherwise.

    glibc gives back large blocks at once. A new page for each 4 KiB of a request took a fifth of the time
    that a batch of 32 images took in MobileNetV2.
    """
    for variable, (parameter, size) in _THRESHOLDS.items():
        if _mallopt is not None and variable not in os.environ:
            _mallopt(parameter, size)


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
