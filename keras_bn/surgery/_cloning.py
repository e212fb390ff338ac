"""A whole model copied, or changed in place, object by object, with some of its layers exchanged.

A model is a web of Python objects: layers that hold layers in attributes, lists and dictionaries, the nodes
of graphs, variables, optimizers. Every object is visited once. An object that refers to a layer or a
variable is copied, and the rest is shared. So no configuration is needed, every name is preserved, and a
layer is replaced wherever it is held.
"""

from __future__ import annotations

import copy
import functools
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from keras_bn import _keras
from keras_bn._compiled_functions import compiled_alike, is_compiled_function, python_function

_FUNCTIONS_OF_TRAINING = ("train_function", "test_function", "predict_function")
_ATOMIC = (type, types.ModuleType, types.BuiltinFunctionType, str, bytes, int, float, complex, type(None))
# Copied at once, with what they hold.
_IMMUTABLE = (tuple, frozenset, types.MethodType, functools.partial)
# Objects of these packages are no part of a model, but for their containers and variables.
_FOREIGN = {"tensorflow", "torch", "jax", "jaxlib", "numpy", "ml_dtypes", *sys.stdlib_module_names}


class Clone:
    """A copy of a model that shares no layer and no variable with it.

    Args:
        model: any object that holds layers; a model, as a rule. It is left as it is.
        exchanged: layers of `model`, or objects in it, by identity: pairs of an old one and the new one that
            stands wherever the old one stood. A new layer takes over the calls of the old one.

    Attributes:
        model: the copy, of the same class.
    """

    def __init__(self, model: Any, exchanged: Iterable[tuple[Any, Any]] = ()) -> None:
        self._exchanged = _with_variables(exchanged)
        self._web = _Web(model, {id(old) for old, _ in self._exchanged})
        self._new: dict[int, Any] = {}
        self._pending: list[tuple[Any, Any]] = []
        for old, new in self._exchanged:
            self._new[id(old)] = new
        self.model = self._of(model)
        while self._pending:
            _fill(*self._pending.pop(), self._of)
        _finish(self._web, self._new)

    def of(self, original: Any) -> Any:
        """The counterpart of an object of the model in the copy, or the object itself if it is shared.

        Raises:
            KeyError: if it is a layer or variable that the model does not hold.
        """
        if id(original) in self._new:
            return self._new[id(original)]
        if isinstance(original, (keras.Operation, keras.Variable)):
            raise KeyError(original)
        return original

    def __contains__(self, original: Any) -> bool:
        return id(original) in self._new

    def _of(self, old: Any) -> Any:
        if id(old) in self._new:
            return self._new[id(old)]
        if not self._web.is_copied(old):
            return old
        new = _shell(old, self._of)
        self._new[id(old)] = new
        if not isinstance(old, _IMMUTABLE) and not is_compiled_function(old):
            self._pending.append((old, new))
        return new


@contextmanager
def exchanged_in_place(model: Any, exchanged: Iterable[tuple[Any, Any]]) -> Iterator[None]:
    """Put new layers in the places of old ones in `model` itself.

    If the block is left by an error, or by Ctrl-C, every place holds again what it held before.
    """
    pairs = _with_variables(exchanged)
    new = {id(old): replacement for old, replacement in pairs}
    web = _Web(model, set(new))

    def swapped(value: Any) -> Any:
        if id(value) in new:
            return new[id(value)]
        if is_compiled_function(value) and web.reaches(value):  # its traces have the old layers in them
            new[id(value)] = compiled_alike(value, swapped(python_function(value)))
            return new[id(value)]
        if isinstance(value, _IMMUTABLE) and web.reaches(value):
            old_parts = list(_parts(value))
            if any(swapped(part) is not part for part in old_parts):
                return _shell(value, swapped)
        return value

    undo: list[Callable[[], None]] = []
    try:
        for holder in web.objects:
            if id(holder) not in new and not isinstance(holder, _IMMUTABLE):
                _swap_inside(holder, swapped, undo)
        for old, replacement in pairs:
            if isinstance(old, keras.Operation):
                for name in _keras.NODE_LISTS:
                    _set_item(vars(replacement), name, vars(old)[name], undo)
        _refresh_keys(web, new, undo)
        yield
    except BaseException:
        for restore in reversed(undo):
            restore()
        raise


def layers_in(model: keras.Layer) -> list[tuple[str, keras.Layer]]:
    """Every layer a model holds, wherever it holds it, with a readable path such as `backbone/block/bn`.

    Those that Keras tracks come first, in its order; those that it does not see, held by objects of one's
    own, follow. A model in a wrapper is no level of its own: `TimeDistributed(cnn, name="td")` holds `td/bn`.
    A shared layer is listed once, and the model itself not at all. Paths are unique: of two layers that a
    layer holds under one name, the second is `block/bn (2)`.
    """
    found: dict[int, tuple[str, keras.Layer]] = {}
    taken: set[str] = set()

    def enter(layer: keras.Layer, path: str) -> str:
        unique, count = path, 1
        while unique in taken:
            count += 1
            unique = f"{path} ({count})"
        taken.add(unique)
        found[id(layer)] = unique, layer
        return unique

    def visit(owner: keras.Layer, prefix: str) -> None:
        for layer in _keras.direct_layers(owner):
            if id(layer) not in found and layer is not model:
                path = enter(layer, f"{prefix}{layer.name}")
                wrapped = isinstance(owner, keras.layers.Wrapper) and isinstance(layer, keras.Model)
                visit(layer, prefix if wrapped else f"{path}/")

    visit(model, "")
    for holder in _Web(model).objects:
        if isinstance(holder, keras.Layer) and id(holder) not in found and holder is not model:
            visit(holder, f"{enter(holder, holder.name)}/")
    return list(found.values())


class _Web:
    """The objects that can be reached from a model, and which of them lead to a layer or variable.

    Args:
        root: the model.
        closed: identities of objects that are not looked into.
    """

    def __init__(self, root: Any, closed: Set[int] = frozenset()) -> None:
        self.objects: list[Any] = []
        self._holders: dict[int, list[Any]] = {}
        seen: set[int] = set()
        pending = [root]
        self._alive: list[Any] = []  # lest an identity be given to another object meanwhile
        while pending:
            holder = pending.pop()
            if id(holder) in seen:
                continue
            seen.add(id(holder))
            self.objects.append(holder)
            # Most of what objects hold are names and numbers.
            parts = [] if id(holder) in closed else [x for x in _parts(holder) if not isinstance(x, _ATOMIC)]
            self._alive += parts
            for part in parts:
                self._holders.setdefault(id(part), []).append(holder)
            pending += reversed(parts)

    @functools.cached_property
    def _reaching(self) -> set[int]:
        """The identities of the objects that lead to a layer or variable."""
        result: set[int] = set()
        waiting = [each for each in self.objects if _is_essential(each)]
        while waiting:
            each = waiting.pop()
            if id(each) not in result:
                result.add(id(each))
                waiting += self._holders.get(id(each), [])
        return result

    def reaches(self, each: Any) -> bool:
        """Whether it is, or holds, a layer or a variable."""
        return id(each) in self._reaching

    def is_copied(self, each: Any) -> bool:
        """Whether a copy of the model has its own."""
        return self.reaches(each) or isinstance(each, (list, dict, set, deque, np.ndarray))


def _is_essential(each: Any) -> bool:
    return isinstance(each, (keras.Operation, keras.Variable, keras.KerasTensor)) or _is_storage(each)


def _is_storage(each: Any) -> bool:
    """Whether it is what a backend keeps the value of a variable in."""
    return isinstance(each, _keras.storage_types())


def _parts(each: Any) -> Iterator[Any]:
    """The contents of an object that can matter to a model."""
    if type(each) is dict:  # this and the next, which have no attributes, are most of what there is
        yield from each.keys()
        yield from each.values()
        return
    if type(each) in (list, tuple):
        yield from each
        return
    if isinstance(each, _ATOMIC) or _is_storage(each):
        return
    if is_compiled_function(each):
        yield python_function(each)
        return
    if isinstance(each, dict):
        yield from each.keys()
        yield from each.values()
    elif isinstance(each, (list, tuple, set, frozenset, deque)):
        yield from each
    elif isinstance(each, types.FunctionType):
        yield from (cell.cell_contents for cell in each.__closure__ or () if not _is_empty(cell))
        yield from each.__defaults__ or ()
        yield from (each.__kwdefaults__ or {}).values()
    elif isinstance(each, types.MethodType):
        yield from (each.__self__, each.__func__)
    elif isinstance(each, functools.partial):
        yield from (each.func, *each.args, *each.keywords.values())
    elif _is_foreign(each):
        return
    yield from _attributes(each).values()
    if isinstance(each, keras.KerasTensor) and (node := _keras.producing_node(each)) is not None:
        yield node


def _attributes(each: Any) -> dict[str, Any]:
    """The attributes of an object that a copy takes over."""
    found = dict(getattr(each, "__dict__", {}))
    for kind in type(each).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(each, name):
                found[name] = getattr(each, name)
    if isinstance(each, keras.Operation):
        for name in (*_keras.NODE_LISTS, *_FUNCTIONS_OF_TRAINING, *_keras.LOSSES_OF_A_CALL):
            found.pop(name, None)
    return found


def _is_foreign(each: Any) -> bool:
    # A layer may be of a class whose module has the name of one of Python's, such as `test` or `code`.
    if isinstance(each, (keras.Operation, *_keras.module_types())):
        return False
    return type(each).__module__.partition(".")[0] in _FOREIGN and not isinstance(each, types.SimpleNamespace)


def _is_tensorflow(holder: Any) -> bool:
    """Whether it is TensorFlow's wrapper of a list, which keeps its items in an attribute."""
    return type(holder).__module__.startswith("tensorflow.")


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _immutable(old: Any, parts: list[Any]) -> Any:
    if isinstance(old, frozenset):
        return type(old)(parts)
    return tuple.__new__(type(old) if issubclass(type(old), tuple) else tuple, parts)


def _shell(old: Any, new_of: Callable[[Any], Any]) -> Any:
    """A copy of an object that has yet to get its contents, so that these may refer to it."""
    kind = type(old)
    if isinstance(old, (tuple, frozenset)):
        return _immutable(old, [new_of(part) for part in old])
    if _is_storage(old) or isinstance(old, np.ndarray):
        return copy.deepcopy(old)
    if is_compiled_function(old):
        return compiled_alike(old, new_of(python_function(old)))
    if isinstance(old, types.FunctionType):
        cells = None if old.__closure__ is None else tuple(types.CellType() for _ in old.__closure__)
        function = types.FunctionType(old.__code__, old.__globals__, old.__name__, old.__defaults__, cells)
        function.__kwdefaults__ = old.__kwdefaults__
        return function
    if isinstance(old, types.MethodType):
        return types.MethodType(new_of(old.__func__), new_of(old.__self__))
    if isinstance(old, functools.partial):
        keywords = {name: new_of(value) for name, value in old.keywords.items()}
        return functools.partial(new_of(old.func), *map(new_of, old.args), **keywords)
    if isinstance(old, defaultdict):
        return kind(old.default_factory)
    if isinstance(old, deque):
        return kind(maxlen=old.maxlen)
    containers: tuple[Any, ...] = (OrderedDict, dict, list, set, types.SimpleNamespace)
    for base in containers:
        if isinstance(old, base):
            return base.__new__(kind if issubclass(kind, base) else base)
    return object.__new__(kind)


def _fill(old: Any, new: Any, new_of: Callable[[Any], Any]) -> None:
    if _is_storage(old) or isinstance(old, np.ndarray):
        return
    if isinstance(old, dict):
        put = OrderedDict.__setitem__ if isinstance(old, OrderedDict) else dict.__setitem__
        for key, value in old.items():
            put(new, new_of(key), new_of(value))
    elif isinstance(old, list):
        list.extend(new, [new_of(part) for part in old])
    elif isinstance(old, set):
        set.update(new, {new_of(part) for part in old})
    elif isinstance(old, deque):
        deque.extend(new, [new_of(part) for part in old])
    elif isinstance(old, types.FunctionType):
        for cell, source in zip(new.__closure__ or (), old.__closure__ or (), strict=True):
            if not _is_empty(source):
                cell.cell_contents = new_of(source.cell_contents)
        new.__defaults__ = None if old.__defaults__ is None else tuple(map(new_of, old.__defaults__))
        defaults = old.__kwdefaults__
        new.__kwdefaults__ = None if defaults is None else {k: new_of(v) for k, v in defaults.items()}
        for name in ("__doc__", "__module__", "__qualname__", "__annotations__"):
            setattr(new, name, getattr(old, name))
    if type(new) is not type(old):
        return  # TensorFlow's proxy around a dictionary or tuple, whose attributes only serve itself
    own = getattr(old, "__dict__", {})
    for name, value in _attributes(old).items():
        if name in own:
            vars(new)[name] = new_of(value)
        else:
            object.__setattr__(new, name, new_of(value))
    if isinstance(old, keras.Operation):
        _keras.start_without_calls(old, new, _FUNCTIONS_OF_TRAINING)


def _with_variables(exchanged: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """The pairs, with those of the variables that go by the same name in both layers."""
    result = []
    for old, new in exchanged:
        result.append((old, new))
        if isinstance(old, keras.Layer) and isinstance(new, keras.Layer):
            by_name = {variable.name: variable for variable in new.variables}
            for variable in [] if _keras.direct_layers(old) else old.variables:
                counterpart = by_name.get(variable.name)
                if counterpart is not None and tuple(counterpart.shape) == tuple(variable.shape):
                    result.append((variable, counterpart))
                    result.append((_keras.storage_of(variable), _keras.storage_of(counterpart)))
    return result


def _finish(web: _Web, new: dict[int, Any]) -> None:
    """Set what does not follow from the contents alone: the calls of layers, and tables of identities."""
    for old in web.objects:
        if isinstance(old, keras.Operation) and id(old) in new:
            _keras.take_over_calls(old, new[id(old)], new)
    _refresh_keys(web, new, [], copies=True)


def _refresh_keys(
    web: _Web, new: Mapping[int, Any], undo: list[Callable[[], None]], copies: bool = False
) -> None:
    """Bring tables that are keyed by the identity of an object up to date."""
    variables = [
        (old, new[id(old)]) for old in web.objects if isinstance(old, keras.Variable) and id(old) in new
    ]
    for old in web.objects:
        if copies and id(old) not in new:
            continue
        target = new.get(id(old), old) if copies else old
        if isinstance(target, _keras.Tracker):
            _set_item(vars(target), "stored_ids", _keras.identities_stored(target), undo)
        elif isinstance(target, _keras.Functional) and isinstance(old, _keras.Functional):
            for name, value in _keras.graph_tables(target).items():
                _set_item(vars(target), name, value, undo)
        elif isinstance(target, keras.optimizers.Optimizer):
            for name, value in _keras.rekeyed(target, variables).items():
                _set_item(vars(target), name, value, undo)
        elif isinstance(target, keras.Model) and not copies:
            for name in _FUNCTIONS_OF_TRAINING:
                if vars(target).get(name) is not None:
                    _set_item(vars(target), name, None, undo)


def _swap_inside(holder: Any, swapped: Callable[[Any], Any], undo: list[Callable[[], None]]) -> None:
    """Exchange what a mutable object holds directly."""
    if isinstance(holder, dict):
        for key, value in list(holder.items()):
            if (changed := swapped(value)) is not value:
                _set_item(holder, key, changed, undo)
            if (changed_key := swapped(key)) is not key:
                before = list(holder.items())
                after = [(changed_key if k is key else k, v) for k, v in before]
                undo.append(functools.partial(_refill, holder, before))
                _refill(holder, after)
    elif isinstance(holder, (list, deque)) and not _is_tensorflow(holder):
        for index, value in enumerate(holder):
            if (changed := swapped(value)) is not value:
                _set_item(holder, index, changed, undo)
    elif isinstance(holder, set):
        for value in list(holder):
            if (changed := swapped(value)) is not value:
                undo.append(functools.partial(set.add, holder, value))
                set.discard(holder, value)
                undo.append(functools.partial(set.discard, holder, changed))
                set.add(holder, changed)
    elif isinstance(holder, types.FunctionType):
        for cell in holder.__closure__ or ():
            if not _is_empty(cell) and (changed := swapped(cell.cell_contents)) is not cell.cell_contents:
                undo.append(functools.partial(setattr, cell, "cell_contents", cell.cell_contents))
                cell.cell_contents = changed
    if isinstance(holder, _ATOMIC) or not hasattr(holder, "__dict__") or _is_storage(holder):
        return
    for name, value in list(_attributes(holder).items()):
        if name in vars(holder) and (changed := swapped(value)) is not value:
            _set_item(vars(holder), name, changed, undo)


def _set_item(holder: Any, key: Any, value: Any, undo: list[Callable[[], None]]) -> None:
    """`holder[key] = value` without the hooks of tracked containers, to be undone."""
    base: Any = next(kind for kind in (OrderedDict, dict, list, deque) if isinstance(holder, kind))
    holder = _unwrapped(holder)
    if isinstance(holder, dict) and key not in holder:
        undo.append(functools.partial(base.__delitem__, holder, key))
    else:
        undo.append(functools.partial(base.__setitem__, holder, key, holder[key]))
    base.__setitem__(holder, key, value)


def _unwrapped(holder: Any) -> Any:
    """The container itself, where TensorFlow has put a proxy around it."""
    return holder if issubclass(type(holder), (dict, list, deque)) else holder.__wrapped__


def _refill(holder: dict[Any, Any], items: list[tuple[Any, Any]]) -> None:
    base: Any = OrderedDict if isinstance(holder, OrderedDict) else dict
    holder = _unwrapped(holder)
    base.clear(holder)
    for key, value in items:
        base.__setitem__(holder, key, value)
