"""Choosing the calls of a model that a verb is to work on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from keras_bn.errors import KerasBNError
from keras_bn.surgery.graph import Call

Matcher = Callable[[Call], bool]


def matcher(layers: Any) -> Matcher:
    """A predicate on calls from what a user writes for `layers`.

    Args:
        layers: None (everything), a class, a pattern of names or paths (`"block1_*"`, `"backbone/*"`), a
            predicate that takes the layer, or several of these, any of which is enough.
    """
    if layers is None:
        return lambda call: True
    if isinstance(layers, type):
        return lambda call: isinstance(call.layer, layers)
    if isinstance(layers, str):
        return lambda call: fnmatchcase(call.layer.name, layers) or fnmatchcase(call.path, layers)
    if callable(layers):
        return lambda call: bool(layers(call.layer))
    if not isinstance(layers, Iterable):
        raise KerasBNError(
            f"layers={layers!r}: give a layer class, a name pattern, a predicate, or a list of these."
        )
    matchers = [matcher(each) for each in layers]
    return lambda call: any(matches(call) for matches in matchers)


def select(found: Iterable[Call], layers: Any) -> set[str]:
    """The paths of the calls that `layers` chooses.

    Raises:
        KerasBNError: if it chooses none.
    """
    found = list(found)
    matches = matcher(layers)
    chosen = {call.path for call in found if matches(call)}
    if not chosen:
        names = [call.path for call in found]
        listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise KerasBNError(f"layers={layers!r} matches none of the layers there are: {listed or 'none'}.")
    return chosen
