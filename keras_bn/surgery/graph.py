"""Rewriting Keras models: every call of a layer is kept, or replaced by a chain of layers.

The donor is never touched. Its layers are cloned, so nothing is shared between the two models; names,
`trainable` flags, dtype policies, the state of random seeds and the compile configuration are carried over.
A layer whose configuration changes is made anew. Nested models are rewritten in their places, a Sequential
stays one, and a layer that is called twice is copied once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_bn._keras import Functional, graph_of, nodes, structures
from keras_bn.errors import KerasBNError
from keras_bn.surgery import _copying
from keras_bn.surgery._checks import check_keras_model
from keras_bn.surgery._cloning import exchanged_in_place

Edit = Callable[["Call", _copying.Copies], "Sequence[Any] | None"]
Paths = Mapping[int, str]


class UncallableError(KerasBNError):
    """A layer of a graph cannot be called a second time; the message says which and why."""


@dataclass(eq=False)
class Call:
    """One call of one layer (or of a bare operation of `keras.ops`) in the graph of a model.

    Attributes:
        layer: what is called; a nested model is one call, with `inner` listing the calls in it.
        path: unique and readable, `backbone/conv1`; later calls of a shared layer end in ` (call 2)`.
        kwargs: the keyword arguments it is called with.
        producers: the calls whose outputs it takes, in the order of its arguments.
        consumers: the calls that take its outputs.
        is_output: whether an output of the model it stands in (which may be a nested one) comes from it.
        is_model_output: whether that model is the outermost one.
        inner: the calls of a nested model, else empty.
    """

    layer: Any
    path: str
    kwargs: dict[str, Any]
    is_output: bool
    is_model_output: bool
    node: Any = field(repr=False)
    names: set[str] = field(repr=False)
    producers: list[Call] = field(default_factory=list, repr=False)
    consumers: list[Call] = field(default_factory=list, repr=False)
    inner: list[Call] = field(default_factory=list, repr=False)

    @property
    def own_layer(self) -> Any:
        """What is called: in a TimeDistributed, the layer that this calls on every step."""
        return unwrapped(self.layer)

    @property
    def own_path(self) -> str:
        """The path of `own_layer`."""
        inner = self.own_layer
        return self.path if inner is self.layer else f"{self.path}/{inner.name}"

    def name_for(self, suffix: str) -> str:
        """A name for a layer that goes with this one, `conv1_bn`, which no other layer of the model has."""
        base = name = f"{self.layer.name}_{suffix}"
        count = 1
        while name in self.names:
            count += 1
            name = f"{base}_{count}"
        self.names.add(name)
        return name


def calls(model: keras.Model, paths: Paths | None = None) -> list[Call]:
    """The calls of a model's graph, each after those it depends on; nested models are one call each.

    Args:
        model: Functional or Sequential, also with such models nested in it or in wrappers.
        paths: of layers, by their identity, that are to be called otherwise than their names say.

    Raises:
        KerasBNError: if `model` is not Functional or Sequential, is not built, or two layers share a name.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="logits")])
    >>> [(call.path, call.is_output) for call in calls(model)[1:]]
    [('logits', True)]
    """
    check(model)
    return _calls(model, "", paths or {})


def walk(model: keras.Model, paths: Paths | None = None) -> Iterator[Call]:
    """Like `calls`, followed into nested models: first the call of the nested model, then what is in it."""
    yield from flatten(calls(model, paths))


def flatten(found: Sequence[Call]) -> Iterator[Call]:
    """Calls, each followed by those inside it."""
    for call in found:
        yield call
        yield from flatten(call.inner)


def rewrite(
    model: keras.Model, edit: Edit, *, owned: bool = False, paths: Paths | None = None
) -> keras.Model:
    """Build a new model from `model`, calling other layers where `edit` says so.

    Args:
        model: Functional, Sequential, or either with such models nested in it.
        edit: called as `edit(call, copy)` for each call of a layer other than inputs and nested models (these
            are followed into; one called twice is edited once). It returns the layers to call instead, one
            after the other (an empty list removes the call: its first input passes through), or None to
            keep the layer as it is. `copy(layer)` is the layer's copy in the new model, made once per layer;
            `copy(layer, weights=None, **changes)` makes it with other entries in its configuration and,
            where the variables then differ, with these weights (arrays, in the order of `layer.weights`).
        owned: If True, the layers of `model` are used up: they become those of the result.
        paths: as for `calls`.

    Returns:
        A new model of the class of `model` if that can be built from inputs and outputs, else Functional:
        `losses` says so.

    Raises:
        KerasBNError: as for `calls`, and if a layer cannot be recreated from its configuration.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    >>> without = rewrite(model, lambda call, copy: [] if "dropout" in call.path else None)
    >>> [type(layer).__name__ for layer in without.layers]
    ['Dense']
    """
    check(model)
    copies = _copying.Copies(model, owned)
    result = _rebuild(model, _calls(model, "", paths or {}), edit, copies)
    copies.transfer_state()
    copies.transfer_trainable(model, result)
    _copying.compile_alike(model, result)
    return result


def losses(donor: keras.Model, result: keras.Model) -> tuple[str, ...]:
    """The properties of `donor` that a rewritten `result` could not keep, a sentence each."""
    notes = []
    if type(result) is not type(donor) and not isinstance(donor, keras.Sequential):
        notes.append(
            f"The result is a {type(result).__name__}: {type(donor).__name__} is not built from inputs and "
            "outputs, so methods of its own are not carried over."
        )
    if donor.compiled and not result.compiled:
        notes.append("The result is not compiled: the compile configuration cannot be deserialized.")
    steps = _steps(donor)
    if result.compiled and _steps(result) != steps:
        notes.append(
            f"The optimizer starts anew: its state after {steps} steps belongs to weights that the result "
            "does not have."
        )
    return tuple(notes)


def _steps(model: keras.Model) -> int:
    """How many steps the optimizer of a model has made."""
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else int(optimizer.iterations)


def is_graph(model: Any) -> bool:
    """Whether it is a Functional or Sequential model whose graph is what it computes."""
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call and graph_of(model) is not None
    if not (isinstance(model, keras.Model) and isinstance(model, keras.Function)):
        return False
    return type(model).call is Functional.call


def graph_in(layer: Any) -> Any:
    """The model with a graph that a layer is, or that it wraps; None if there is none."""
    if is_graph(layer):
        return layer
    if type(layer) is keras.layers.TimeDistributed and is_graph(layer.layer):
        return layer.layer
    return None


def unwrapped(layer: Any) -> Any:
    """The layer that a TimeDistributed calls on every step, or the layer itself."""
    return layer.layer if type(layer) is keras.layers.TimeDistributed else layer


def keeps_its_class(model: Any) -> bool:
    """Whether `rewrite` gives a graph, and those nested in it, the classes that they have."""
    if not is_graph(model) or _copying.constructor(model) is not type(model):
        return False
    inner = (graph_in(operation) for operation in graph_of(model).operations)
    return all(keeps_its_class(each) for each in inner if each is not None)


def check(model: Any) -> None:
    """Raise a KerasBNError unless `model` can be rewritten."""
    check_keras_model(model)
    if isinstance(model, keras.Sequential) and graph_of(model) is None:
        # Keras gives up silently where it cannot tell the shapes between the layers.
        hint = (
            " If that has been done, a layer in it does not tell the shape of its output: give its class a "
            "compute_output_shape method."
        )
        raise KerasBNError(
            f"Model {model.name!r} is not built: start it with a keras.Input, or call "
            f"model.build(input_shape) first.{hint if model.weights else ''}"
        )
    if not is_graph(model):
        raise KerasBNError(
            f"Model {model.name!r} is subclassed ({type(model).__name__}): its graph cannot be seen. Rebuild "
            "it with the functional API, keras.Model(inputs, outputs), or operate on the Functional or "
            "Sequential models it holds and put the results in their place."
        )
    operations = graph_of(model).operations
    for name, count in Counter(operation.name for operation in operations).items():
        if count > 1:
            raise KerasBNError(
                f"Model {model.name!r} has {count} layers named {name!r}; give each its own name."
            )
    for operation in operations:
        if (inner := graph_in(operation)) is not None:
            check(inner)


def _calls(model: keras.Model, prefix: str, paths: Paths) -> list[Call]:
    graph = graph_of(model)
    outputs = {id(tensor) for tensor in graph.outputs}
    names = {operation.name for operation in graph.operations}
    result: list[Call] = []
    by_tensor: dict[int, Call] = {}
    seen: Counter[int] = Counter()
    for node in nodes(graph):
        layer = node.operation
        seen[id(layer)] += 1
        path = paths.get(id(layer), f"{prefix}{layer.name}") + (
            f" (call {seen[id(layer)]})" if seen[id(layer)] > 1 else ""
        )
        is_output = any(id(tensor) in outputs for tensor in node.outputs)
        kwargs = dict(node.arguments.kwargs)
        call = Call(layer, path, kwargs, is_output, is_output and not prefix, node, names)
        call.producers = [by_tensor[id(t)] for t in node.input_tensors if id(t) in by_tensor]
        for producer in call.producers:
            producer.consumers.append(call)
        # A nested model that is called again is the same one, and listed once.
        if (inner := graph_in(layer)) is not None and seen[id(layer)] == 1:
            call.inner = _calls(inner, f"{path}/", paths)
        by_tensor.update((id(tensor), call) for tensor in node.outputs)
        result.append(call)
    return result


def _rebuild(model: keras.Model, found: list[Call], edit: Edit, copies: _copying.Copies) -> keras.Model:
    def chain(call: Call) -> Sequence[keras.Layer]:
        if (inner := graph_in(call.layer)) is not None:
            if inner not in copies:
                copies.register(inner, _rebuild(inner, call.inner, edit, copies))
                if inner is not call.layer:
                    pair = copies.clone_of(inner), copies(inner)
                    with exchanged_in_place(copies(call.layer), [pair]):
                        pass
            return [copies(call.layer)]
        replacement = None if call.node.is_input else edit(call, copies)
        if replacement is None:
            return [copies(call.layer)]
        copies.note(replacement)
        return replacement

    if isinstance(model, keras.Sequential):
        # The operations that compute masks are in the graph too; the new model makes its own.
        stack = [layer for call in found if isinstance(call.layer, keras.Layer) for layer in chain(call)]
        if all(isinstance(layer, keras.Layer) for layer in stack):
            return _copying.constructor(model)(stack, name=model.name)
    tensors: dict[int, Any] = {}
    for call in found:
        layers = chain(call)
        if call.node.is_input:
            results = [layers[0].output]
        elif any(id(tensor) not in tensors for tensor in call.node.input_tensors):
            continue  # Not reachable from the inputs: Keras skips it as well.
        else:
            results = _apply(layers, call, tensors)
        tensors.update((id(old), new) for old, new in zip(call.node.outputs, results, strict=True))
    ends = structures(graph_of(model))
    inputs, outputs = keras.tree.map_structure(lambda tensor: tensors[id(tensor)], ends)
    kind = keras.Model if isinstance(model, keras.Sequential) else _copying.constructor(model)
    return kind(inputs, outputs, name=model.name)


def _apply(layers: Sequence[keras.Layer], call: Call, tensors: dict[int, Any]) -> list[Any]:
    args, kwargs = call.node.arguments.fill_in(tensors)
    if not layers:
        return [tensors[id(call.node.input_tensors[0])]]
    first = layers[0]
    try:
        result = first(*args, **(kwargs if type(first) is type(call.layer) else _taken(first, kwargs)))
        # A layer in training mode, or masked, is so in all of its parts.
        modes = {name: kwargs[name] for name in ("training", "mask") if name in kwargs}
        for layer in layers[1:]:
            result = layer(result, **_taken(layer, modes))
    except KerasBNError:
        raise
    except Exception as error:  # what a layer raises is its own affair
        raise UncallableError(
            f"Layer {call.path!r} ({type(call.layer).__name__}) cannot be called again on symbolic tensors: "
            f"{error} Give the class a compute_output_shape or compute_output_spec that says what it returns."
        ) from error
    return keras.tree.flatten(result)


def _taken(layer: keras.Layer, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a layer takes."""
    accepted = _copying.parameters(layer.call)
    return {name: value for name, value in kwargs.items() if name in accepted}
