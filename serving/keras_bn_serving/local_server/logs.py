"""The log on stderr, which never fails and never blocks a caller.

Lines wait in a queue for a thread that writes them. If stderr accepts no more (a full disk, a pipe that
is not read), lines are lost, and the next line that is written gives their number. Requests are not affected.
"""

import logging
import os
import queue
import threading
import time

_STDERR = 2
_MOST_LINES = 10_000
_lines: queue.Queue[str] = queue.Queue(_MOST_LINES)
_lost = 0


def keep_standard_streams_open() -> None:
    """Put the null device where stdin, stdout or stderr is closed.

    Else the next file or socket that is opened takes the number, and what is logged goes there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def start() -> None:
    """Send what is logged from INFO on to stderr."""
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(asctime)s: %(levelname).1s %(name)s] %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    threading.Thread(target=_write_for_ever, name="log", daemon=True).start()


def write(line: str) -> None:
    """Write a line as it is."""
    global _lost
    try:
        _lines.put_nowait(line)
    except queue.Full:
        _lost += 1


def flush(seconds: float = 1.0) -> None:
    """Wait until all lines are written, at most that long."""
    deadline = time.monotonic() + seconds
    while _lines.unfinished_tasks and time.monotonic() < deadline:
        time.sleep(0.005)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            write(self.format(record))
        except Exception:  # arguments that do not fit their format
            write(f"{record.levelname} {record.name}] {record.msg!r}")


def _write_for_ever() -> None:
    global _lost
    while True:
        data = (_lines.get() + "\n").encode("utf-8", "backslashreplace")
        if _lost:
            data = b"%d lines of the log were lost.\n%b" % (_lost, data)
            _lost = 0
        try:
            while data:
                data = data[os.write(_STDERR, data) :]
        except OSError:
            _lost += 1
        _lines.task_done()
