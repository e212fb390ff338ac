"""Deadlines of runs that block the threads that start them.

The alternative, a run in a thread of the runtime that is waited for up to its deadline, takes two more
switches between threads: 0.1 of 3 ms, for a small network.
"""

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator

from keras_bn_serving.wire.errors import DeadlineExceededError

_AGAIN_SECONDS = 0.01


class Deadlines:
    """Cancels runs whose time is up, in one thread for all of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._runs: dict[int, tuple[float, Callable[[], object]]] = {}
        self._wakes = math.inf  # when the thread looks at the runs next
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def within(self, seconds: float, cancel: Callable[[], object]) -> Iterator[None]:
        """Cancel the block after `seconds`.

        `cancel`, which must not raise, is called in another thread, and again until the block ends, since the
        run may not have begun when it is called first. It is not called after that.

        Raises:
            DeadlineExceededError: the block raised any exception after its time was up.
        """
        until, number = time.monotonic() + seconds, next(self._numbers)
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._cancel_for_ever, name="deadlines", daemon=True)
                thread.start()
                self._thread = thread
            self._runs[number] = until, cancel
            if until < self._wakes:
                self._changed.notify()
        try:
            yield
        except Exception:
            if time.monotonic() < until:
                raise
            raise DeadlineExceededError("Timed out waiting for notification") from None
        finally:
            with self._changed:
                del self._runs[number]

    def _cancel_for_ever(self) -> None:
        with self._changed:
            while True:
                now, self._wakes = time.monotonic(), math.inf
                for until, cancel in self._runs.values():
                    if until <= now:
                        cancel()
                    self._wakes = min(self._wakes, max(until, now + _AGAIN_SECONDS))
                self._changed.wait(None if self._wakes == math.inf else self._wakes - now)
