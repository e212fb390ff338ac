"""The time that has passed, on a terminal, while one long call runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def elapsed(what: str) -> Iterator[None]:
    """Show `what` and the seconds since it began, twice a second; nothing where stderr is no terminal."""
    done = threading.Event()
    with tqdm(desc=what, bar_format="{desc}: {elapsed}", disable=None, leave=False) as bar:

        def refresh() -> None:
            while not done.wait(0.5):
                bar.refresh()

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
