"""Layers and models replaced by the graph of what their `call` does.

Keras records layers and `keras.ops` that are called on symbolic tensors. The `call` of a custom layer,
called directly on such tensors, so leaves a node for every layer and operation inside it. The result computes
what the layer computes, and is a plain graph.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bn import _keras
from keras_bn.errors import KerasBNError
from keras_bn.layers.weight import Weight
from keras_bn.surgery._cloning import Clone, layers_in
from keras_bn.surgery._copying import Copies, constructor, parameters
from keras_bn.surgery._inputs import symbolic_inputs
from keras_bn.surgery._noise import differs
from keras_bn.surgery.graph import (
    Call,
    UncallableError,
    calls,
    check,
    graph_in,
    is_graph,
    rewrite,
    walk,
)


class _Closed(Exception):
    """A layer cannot be inlined; the message says why."""


class UnseenError(KerasBNError):
    """A subclassed model cannot be inlined.

    Attributes:
        reason: why, for a row of a report.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Inlined:
    """A copy of a model with those of its layers inlined that hold layers of interest.

    Args:
        model: any built model. It is left as it is.
        wanted: whether a layer is of interest. What holds none is left as it is.
        trainable: If True, the result is to be trained on, so a layer that computes something else in
            training is not inlined.
        keep: paths of layers that are not to be inlined, since the outputs would change.
        loadable: If True, layers that the donor's code creates and that cannot be created from their
            configurations are inlined as well. With them, the result could not be loaded from a .keras file.

    Attributes:
        model: The copy, Functional or Sequential. Nothing else uses it, so its layers may be taken over.
        paths: the path of every layer of the copy, by identity, as it is in the donor.
        donors: the layer of the donor, by the identity of its copy.
        opened: the paths of the layers that were inlined.
        closed: why the others that hold layers of interest were not, by path.

    Raises:
        UnseenError: the model is subclassed, and its `call` cannot be inlined.
    """

    def __init__(
        self,
        model: keras.Model,
        wanted: Callable[[Any], bool],
        trainable: bool = False,
        keep: Iterable[str] = (),
        loadable: bool = False,
    ) -> None:
        self.opened: dict[str, str] = {}
        self.closed: dict[str, str] = {path: "inlined, it computes something else" for path in keep}
        self._wanted, self._trainable, self._loadable = wanted, trainable, loadable
        self._recreatable: dict[int, tuple[Any, bool]] = {}
        self._inner: dict[int, tuple[Any, list[Any]]] = {}
        if is_graph(model) or isinstance(model, keras.Sequential):
            check(model)
        clone = self._clone = Clone(model)
        held = layers_in(model)
        self.paths = {id(clone.of(layer)): path for path, layer in held}
        self.donors = {id(clone.of(layer)): layer for _, layer in held}
        self._from_configuration = {id(clone.of(each)) for each in _made_from_configuration(model)}
        self._named: set[str] = set()
        self.model = clone.model if is_graph(model) else self._root(clone.model)
        while any(self._is_to_open(call.layer) for call in walk(self.model, self.paths)):
            self._named = {call.layer.name for call in walk(self.model, self.paths)}
            self.model = rewrite(self.model, self._edit, owned=True, paths=self.paths)
        if any(_has_open_batch(call.layer) for call in walk(self.model)):
            self.model = rewrite(self.model, _settled, owned=True, paths=self.paths)

    def notes(self) -> tuple[str, ...]:
        """The notes of a report on the layers that were inlined."""
        notes = []
        if self.opened:
            kinds = ", ".join(sorted(set(self.opened.values())))
            notes.append(
                "Layers of these classes were replaced by what is inside them, so the result is a plain "
                f"graph of layers and operations: {kinds}."
            )
        layers = [call.layer for call in walk(self.model, self.paths)]
        lost = {type(each).__name__ for each in layers if not self._is_loadable(each)}
        if lost:
            notes.append(
                "Layers of these classes cannot be made from their configurations, so the result can be "
                f"exported but not loaded from a .keras file: {', '.join(sorted(lost))}."
            )
        return tuple(notes)

    def normalizations(self, found: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Paths and layers of the donor as paths and layers of the copy."""
        return [(path, self._clone.of(layer)) for path, layer in found]

    def holds(self, layer: Any) -> bool:
        """Whether a layer of interest is inside a layer that is no graph."""
        return (
            isinstance(layer, keras.Layer)
            and graph_in(layer) is None
            and any(self._wanted(inner) for inner in self.layers_in(layer))
        )

    def layers_in(self, layer: Any) -> list[Any]:
        """The layers inside a layer of the copy, which are looked for once."""
        if id(layer) not in self._inner:
            self._inner[id(layer)] = layer, [inner for _, inner in layers_in(layer)]
        return self._inner[id(layer)][1]

    def _is_to_open(self, layer: Any) -> bool:
        path = self.paths.get(id(layer), "")
        if path in self.closed:
            return False
        return (_is_own(layer) and self.holds(layer)) or (self._loadable and not self._is_loadable(layer))

    def _is_loadable(self, layer: Any) -> bool:
        """Whether a layer can be had from a .keras file, or cannot be had from that of the donor either."""
        if not isinstance(layer, keras.Layer) or id(layer) in self._from_configuration:
            return True
        if not _is_own(layer) and _keras.direct_layers(layer):
            return True
        if id(layer) not in self._recreatable:
            self._recreatable[id(layer)] = layer, _is_recreatable(layer)
        return self._recreatable[id(layer)][1]

    def _edit(self, call: Call, copy: Copies) -> list[Any] | None:
        if not self._is_to_open(call.layer):
            return None
        is_output = call.is_model_output and len(call.node.outputs) == 1
        return [_Opening(self, copy(call.layer), is_output)]

    def _root(self, model: keras.Model) -> keras.Model:
        """A graph of what a subclassed model does."""
        if "" in self.closed:
            raise UnseenError(
                f"Model {model.name!r} ({type(model).__name__}): {self.closed['']}.", self.closed[""]
            )
        inputs = symbolic_inputs(model)
        try:
            outputs = self.call(model, (inputs,), {})
        except _Closed as reason:
            raise UnseenError(
                f"Model {model.name!r} is subclassed ({type(model).__name__}), and its graph cannot be seen: "
                f"{reason}. Rebuild it with the functional API, keras.Model(inputs, outputs), or operate on "
                "the Functional or Sequential models it holds and put the results in their place.",
                str(reason),
            ) from reason
        self.opened[""] = type(model).__name__
        return keras.Model(inputs, outputs, name=model.name)

    def call(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The computation of `layer` on symbolic tensors, as nodes of the layers and operations inside it.

        Raises:
            _Closed: if that cannot be had.
        """
        tensors = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        if any(_keras.get_mask(tensor) is not None for tensor in tensors):
            raise _Closed("it is called with a mask")
        if any(_keras.is_optional(tensor) for tensor in tensors):
            raise _Closed("it is called with an optional input, without which it may compute something else")
        if self._trainable and getattr(layer, "activity_regularizer", None) is not None:
            raise _Closed("it has an activity regularizer")
        inner = self.layers_in(layer)
        self._rename(layer, inner)
        if "training" in parameters(layer.call):
            kwargs = {"training": None, **kwargs}
            if self._trainable and kwargs["training"] is None:
                with _keras.calls_forgotten(inner):
                    other = self._trace(layer, args, kwargs | {"training": True}, tensors)
                    in_training = _signature(other, tensors)
                with _keras.calls_forgotten(inner):
                    at_inference = _signature(self._trace(layer, args, kwargs, tensors), tensors)
                if in_training != at_inference:
                    raise _Closed("it computes something else in training")
        outputs = self._trace(layer, args, kwargs, tensors)
        for operation in _operations(outputs, tensors):
            if not isinstance(operation, keras.Layer) and operation.name in self._named:
                operation.name = self._free(f"{layer.name}_{operation.name}")
            self._named.add(operation.name)
        try:
            keras.Function(tensors, keras.tree.flatten(outputs))
        except ValueError as error:  # as with keras.ops.cond, whose branches use tensors from around them
            raise _Closed(f"its operations are no graph: {_first_line(error)}") from error
        return outputs

    def _trace(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Any]) -> Any:
        seeds = _seeds([layer, *self.layers_in(layer)])
        before = [ops.convert_to_numpy(seed) for seed in seeds]
        policy, dtype = layer.dtype_policy, layer.input_dtype
        args, kwargs = keras.tree.map_structure(
            lambda each: (
                policy.convert_input(each, layer.autocast, dtype)
                if isinstance(each, keras.KerasTensor) and _keras.converts_inputs(layer)
                else each
            ),
            (args, kwargs),
        )
        try:
            with _weights_as_tensors(layer, tensors[0], self._named), _losses_noticed(layer) as losses:
                outputs = layer.call(*args, **kwargs)
        except Exception as error:
            unknown = any(None in tensor.shape[1:] for tensor in tensors)
            raise _Closed(
                f"its call does not run on symbolic tensors{' of unknown size' if unknown else ''}: "
                f"{_first_line(error)}"
            ) from error
        changed = [not np.array_equal(ops.convert_to_numpy(s), b) for s, b in zip(seeds, before, strict=True)]
        for seed, value in zip(seeds, before, strict=True):
            seed.assign(value)
        if any(changed):
            raise _Closed("its call draws random numbers")
        if losses and self._trainable:
            raise _Closed("its call adds losses")
        if not all(isinstance(each, keras.KerasTensor) for each in keras.tree.flatten(outputs)):
            raise _Closed("its call returns something other than tensors")
        if any(isinstance(each, keras.Variable) for each in _constants(outputs, tensors)):
            raise _Closed("its call uses weights that it holds in a list or dictionary")
        return outputs

    def _rename(self, layer: Any, inner: list[Any]) -> None:
        """Give layers that come into the graph names that nothing there has."""
        for each in inner:
            if each.name in self._named and each.name not in ("", None):
                each.name = self._free(f"{layer.name}_{each.name}")
            self._named.add(each.name)

    def _free(self, base: str) -> str:
        name, count = base, 1
        while name in self._named:
            count += 1
            name = f"{base}_{count}"
        return name


def inlined_exactly(
    model: keras.Model, wanted: Callable[[Any], bool], trainable: bool = False, data: Any = None
) -> Inlined:
    """A model inlined as far as its outputs stay what they are, to the bit.

    Args:
        model: as for `Inlined`.
        wanted: as for `Inlined`.
        trainable: as for `Inlined`.
        data: one batch of inputs to compare the outputs on; None for noise.
    """
    opened: Iterable[str] = ()
    for loadable in (True, False):
        try:
            inlined = Inlined(model, wanted, trainable, loadable=loadable)
        except UncallableError:  # a part of what was inlined cannot be called again
            opened = [path for path, layer in layers_in(model) if _is_own(layer)]
            continue
        if not inlined.opened or not differs(model, inlined.model, data):
            return inlined
        opened = inlined.opened
    return Inlined(model, wanted, trainable, keep=opened)


class _Opening:
    """Stands for a layer in a chain of layers to call; calls what is inside instead.

    An output of the model keeps its name, which is that of the layer it comes from.
    """

    def __init__(self, inlined: Inlined, layer: Any, is_output: bool) -> None:
        self.inlined, self.layer, self.is_output = inlined, layer, is_output
        self.call = layer.call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        path = self.inlined.paths.get(id(self.layer), self.layer.name)
        try:
            with _keras.calls_kept_on_error([self.layer, *self.inlined.layers_in(self.layer)]):
                outputs = self.inlined.call(self.layer, args, kwargs)
        except _Closed as reason:
            self.inlined.closed[path] = str(reason)
            return self.layer(*args, **kwargs)
        self.inlined.opened[path] = type(self.layer).__name__
        return keras.layers.Identity(name=self.layer.name)(outputs) if self.is_output else outputs


def _is_own(layer: Any) -> bool:
    """Whether its class is not one of Keras's, whose calls are made of loops or are no graphs."""
    return isinstance(layer, keras.Layer) and not type(layer).__module__.startswith("keras.")


def _made_from_configuration(model: Any) -> Iterator[Any]:
    """The layers of those graphs in a model that a .keras file of the model holds layer by layer."""
    if is_graph(model) and constructor(model) is type(model):
        for call in calls(model):
            yield call.layer
            yield from _made_from_configuration(graph_in(call.layer))


def _is_recreatable(layer: Any) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of a lambda that it serializes
            type(layer).from_config(layer.get_config())
    except Exception:  # it is the user's code, and whether it works is what is asked
        return False
    return True


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _nodes_between(outputs: Any, inputs: list[Any]) -> Iterator[Any]:
    """The nodes on the way from `inputs` to `outputs`, backwards, each once."""
    known = {id(tensor) for tensor in inputs}
    pending, seen = list(keras.tree.flatten(outputs)), set()
    while pending:
        tensor = pending.pop()
        if id(tensor) in known or not isinstance(tensor, keras.KerasTensor):
            continue
        node = _keras.producing_node(tensor)
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        pending += reversed(node.input_tensors)


def _operations(outputs: Any, inputs: list[Any]) -> list[Any]:
    found = {id(node.operation): node.operation for node in _nodes_between(outputs, inputs)}
    return list(found.values())


def _constants(outputs: Any, inputs: list[Any]) -> Iterator[Any]:
    for node in _nodes_between(outputs, inputs):
        yield from keras.tree.flatten((node.arguments.args, node.arguments.kwargs))


def _has_open_batch(operation: Any) -> bool:
    """Whether it reshapes to `(ops.shape(x)[0], ...)`, None for a symbolic tensor, which does not run."""
    shape = getattr(operation, "newshape", None) or (1,)
    return shape[0] is None and None not in shape[1:]


def _settled(call: Call, copy: Copies) -> list[Any] | None:
    return [_Settling(copy(call.layer))] if _has_open_batch(call.layer) else None


class _Settling:
    """Stands for a reshaping with an open batch axis; gives it a shape that runs when it is called."""

    def __init__(self, operation: Any) -> None:
        self.operation, self.call = operation, operation.call

    def __call__(self, inputs: Any) -> Any:
        rest, old = list(self.operation.newshape[1:]), inputs.shape[1:]
        if None not in old:
            if -1 in rest:
                rest[rest.index(-1)] = math.prod(old) // abs(math.prod(rest))
            return type(self.operation)((-1, *rest), name=self.operation.name)(inputs)
        return self.operation(inputs)


def _signature(outputs: Any, inputs: list[Any]) -> list[Any]:
    """A value that is equal for two traces of a call if they compute the same."""
    return [
        id(node.operation) if isinstance(node.operation, keras.Layer) else type(node.operation)
        for node in _nodes_between(outputs, inputs)
    ]


def _seeds(layers: list[Any]) -> list[Any]:
    generators = [
        value
        for each in layers
        for value in vars(each).values()
        if isinstance(value, keras.random.SeedGenerator)
    ]
    return [generator.state for generator in generators]


@contextmanager
def _weights_as_tensors(layer: Any, anchor: Any, named: set[str]) -> Iterator[None]:
    """Inside, the attributes of a layer that are weights of its own are symbolic tensors."""
    own = {name: value for name, value in vars(layer).items() if isinstance(value, keras.Variable)}
    try:
        for name, variable in own.items():
            title, count = f"{layer.name}_{name.strip('_')}", 1
            while title in named:
                count += 1
                title = f"{layer.name}_{name.strip('_')}_{count}"
            weight = Weight(
                tuple(variable.shape), name=title, dtype=layer.dtype_policy, trainable=variable.trainable
            )
            weight.build(None)
            weight.set_weights([ops.convert_to_numpy(variable)])
            vars(layer)[name] = weight(anchor)
        yield
    finally:
        vars(layer).update(own)


@contextmanager
def _losses_noticed(layer: Any) -> Iterator[list[Any]]:
    """Inside, losses that a layer adds go into a list."""
    losses: list[Any] = []
    vars(layer)["add_loss"] = losses.append
    try:
        yield losses
    finally:
        del vars(layer)["add_loss"]
