"""Select the layers of a model that a function works on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeAlias

from keras_bn.errors import KerasBNError

# None (all layers), a class, a pattern of names or paths, a predicate on the layer, or several of these.
Layers: TypeAlias = type | str | Callable[[Any], bool] | Iterable[Any] | None


class Found(Protocol):
    """A layer of a model and where it is."""

    @property
    def layer(self) -> Any:
        """The layer."""

    @property
    def path(self) -> str:
        """Its path, unique in the model."""


Matcher = Callable[[Found], bool]


def matcher(layers: Layers) -> Matcher:
    """The predicate on layers that an argument `layers` stands for.

    Args:
        layers: None (all layers), a class, a pattern of names or paths (`"block1_*"`, `"backbone/*"`), a
            predicate that takes the layer, or several of these, of which one must match.
    """
    if layers is None:
        return lambda found: True
    if isinstance(layers, type):
        return lambda found: isinstance(found.layer, layers)
    if isinstance(layers, str):
        return lambda found: fnmatchcase(found.layer.name, layers) or fnmatchcase(found.path, layers)
    if callable(layers):
        return lambda found: bool(layers(found.layer))
    if not isinstance(layers, Iterable):
        raise KerasBNError(
            f"layers={layers!r}: give a layer class, a name pattern, a predicate, or a list of these."
        )
    matchers = [matcher(each) for each in layers]
    return lambda found: any(matches(found) for matches in matchers)


def select(found: Iterable[Found], layers: Layers) -> set[str]:
    """The paths of the layers that `layers` selects.

    Raises:
        KerasBNError: If it selects none.
    """
    found = list(found)
    matches = matcher(layers)
    chosen = {each.path for each in found if matches(each)}
    if not chosen:
        names = [each.path for each in found]
        listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise KerasBNError(f"layers={layers!r} matches none of the layers: {listed or 'none'}.")
    return chosen
