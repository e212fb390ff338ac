"""Reading batches: the first one ahead of the others, and a step after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from keras_bn.data import Batches


def peek(source: Batches) -> tuple[Any, Iterable[Any]]:
    """The first batch, and all of them: as often as wanted if they can be read again."""
    iterator = iter(source)
    first = next(iterator)
    return first, source if source.reiterable else chain([first], iterator)


def each_followed_by(done: Callable[[], Any], data: Iterable[Any]) -> Iterator[Any]:
    """The batches, with `done` called when the use of one has ended."""
    for batch in data:
        yield batch
        done()
