"""A model as a list of steps on numbered values, so that any part of it can be run alone.

The graph of a Functional or Sequential model is followed into nested models and into `TimeDistributed`, whose
time axis is joined to that of the examples. A subclassed model is a single step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import ops

from keras_bn._keras import get_mask, graph_of, nodes, set_mask
from keras_bn.surgery.graph import is_graph


@dataclass(eq=False)
class Step:
    """One call of a layer or of an operation.

    Attributes:
        operation: what is called.
        sources: the numbers of the values it takes.
        targets: the numbers of the values it gives.
        run: takes the values of `sources`, returns those of `targets`, at inference.
        layers: the layer that is called and those inside it, once they have been asked for.
    """

    operation: Any
    sources: list[int]
    targets: list[int]
    run: Callable[[list[Any]], list[Any]] = field(repr=False)
    layers: list[keras.Layer] | None = field(default=None, repr=False)


@dataclass(eq=False)
class Program:
    """The steps of a model, each after those it depends on.

    Attributes:
        inputs: the numbers of the model's inputs, in the order of `keras.tree.flatten`.
        outputs: the numbers of its outputs.
        shapes: the shape of each value as far as the model knows it, None where it does not.
    """

    model: keras.Model
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    shapes: list[tuple[int | None, ...] | None] = field(default_factory=list)

    def value(self, shape: tuple[int | None, ...] | None = None) -> int:
        """The number of a new value."""
        self.shapes.append(shape)
        return len(self.shapes) - 1


def program(model: keras.Model, example: Any) -> Program:
    """The program of a model; `example` is one batch of inputs, whose structure a subclassed model takes."""
    result = Program(model)
    if is_graph(model):
        graph = graph_of(model)
        bound = {}
        for tensor in graph.inputs:
            number = result.value(tuple(tensor.shape))
            result.inputs.append(number)
            bound[id(tensor)] = _converted(result, number, tensor)
        values = _add_graph(result, graph, bound)
        result.outputs = [values[id(tensor)] for tensor in graph.outputs]
        return result
    leaves = keras.tree.flatten(example)
    result.inputs = [result.value() for _ in leaves]
    result.outputs = [result.value()]

    def run(values: list[Any]) -> list[Any]:
        return [model(keras.tree.pack_sequence_as(example, values), training=False)]

    result.steps = [Step(model, result.inputs, result.outputs, run)]
    return result


def _add_graph(result: Program, graph: Any, bound: dict[int, int]) -> dict[int, int]:
    """Append the steps of a graph; returns the numbers of its symbolic tensors, by their identity."""
    values = dict(bound)
    for node in nodes(graph):
        if node.is_input or any(id(tensor) not in values for tensor in node.input_tensors):
            continue
        layer = node.operation
        given = [values[id(tensor)] for tensor in node.input_tensors]
        kwargs = {name for name, value in node.arguments.kwargs.items() if value is not None}
        plain = len(node.arguments.args) == 1 and kwargs <= {"training"}
        if is_graph(layer) and plain and len(given) == len(graph_of(layer).inputs):
            targets = _add_nested(result, layer, node.arguments.args[0], values)
        elif type(layer) is keras.layers.TimeDistributed and plain and len(given) == 1:
            targets = [_add_time_distributed(result, layer, given[0], node)]
        else:
            targets = [result.value(tuple(tensor.shape)) for tensor in node.outputs]
            result.steps.append(Step(layer, given, targets, _call(node)))
        values.update((id(tensor), target) for tensor, target in zip(node.outputs, targets, strict=True))
    return values


def _add_nested(result: Program, model: keras.Model, inputs: Any, values: dict[int, int]) -> list[int]:
    graph = graph_of(model)
    if isinstance(inputs, dict) and not isinstance(model.input, dict):
        inputs = [inputs[tensor.name] for tensor in graph.inputs]
    numbers = [values[id(tensor)] for tensor in keras.tree.flatten(inputs)]
    bound = {id(t): _converted(result, n, t) for t, n in zip(graph.inputs, numbers, strict=True)}
    inner = _add_graph(result, graph, bound)
    return [inner[id(tensor)] for tensor in graph.outputs]


def _add_time_distributed(result: Program, wrapper: Any, number: int, node: Any) -> int:
    """The wrapped layer called once, on the steps of all examples as so many examples."""
    layer, shape = wrapper.layer, tuple(node.input_tensors[0].shape)
    joined = result.value((None, *shape[2:]))
    result.steps.append(
        Step(_join, [number], [joined], lambda values: [_join(_cast_for(wrapper, values[0]))])
    )
    if is_graph(layer) and len(graph_of(layer).inputs) == 1:
        graph = graph_of(layer)
        inner = _add_graph(result, graph, {id(graph.inputs[0]): _converted(result, joined, graph.inputs[0])})
        given = inner[id(graph.outputs[0])]
    else:
        given = result.value()
        run = _at_inference(layer)
        result.steps.append(Step(layer, [joined], [given], lambda values: [run(values[0])]))
    target = result.value(tuple(node.outputs[0].shape))
    # The input says how many steps there are where the model does not.
    sources = [given] if shape[1] is not None else [given, number]

    def split(values: list[Any]) -> list[Any]:
        length = shape[1] if shape[1] is not None else ops.shape(values[1])[1]
        return [ops.reshape(values[0], (-1, length, *ops.shape(values[0])[1:]))]

    result.steps.append(Step(_join, sources, [target], split))
    return target


def _join(values: Any) -> Any:
    return ops.reshape(values, (-1, *ops.shape(values)[2:]))


def _cast_for(layer: keras.Layer, values: Any) -> Any:
    return layer.dtype_policy.convert_input(values, layer.autocast, layer.input_dtype)


def _converted(result: Program, number: int, tensor: Any) -> int:
    """A value made what a model's input takes it to be: of that dtype and rank, as Keras makes it."""
    target = result.value(tuple(tensor.shape))

    def convert(values: list[Any]) -> list[Any]:
        if values[0] is None:
            return [None]
        mask = get_mask(values[0])
        converted = ops.convert_to_tensor(values[0], dtype=tensor.dtype, sparse=tensor.sparse)
        if len(converted.shape) == len(tensor.shape) - 1:
            converted = ops.expand_dims(converted, -1)
        elif len(converted.shape) == len(tensor.shape) + 1:
            converted = ops.squeeze(converted, -1)
        if mask is not None:
            set_mask(converted, mask)
        return [converted]

    result.steps.append(Step(ops.convert_to_tensor, [number], [target], convert))
    return target


def _call(node: Any) -> Callable[[list[Any]], list[Any]]:
    run = _at_inference(node.operation)

    def call(values: list[Any]) -> list[Any]:
        tensors = {id(t): value for t, value in zip(node.input_tensors, values, strict=True)}
        args, kwargs = node.arguments.fill_in(tensors)
        return keras.tree.flatten(run(*args, **kwargs))

    return call


def _at_inference(operation: Any) -> Callable[..., Any]:
    """The operation called with training=False, whatever the graph says, as Keras does.

    Every layer takes that argument, also one whose `call` has no such parameter: it holds for the layers
    inside. Without it, `Resizing` and the like, which have training=True by default, would set it for the
    layers after them.
    """
    if not isinstance(operation, keras.Layer):
        return operation
    return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": False})
