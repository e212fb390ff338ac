"""Every private name of Keras that this package uses, and the public alternative that was tried.

Tested on Keras 3.10 to 3.15. `tests/test_private_names.py` uses each of them, so a release that renames one
fails there first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.backend import get_keras_mask as _get_keras_mask
from keras.src.backend import set_keras_mask as _set_keras_mask
from keras.src.backend.common.stateless_scope import in_stateless_scope as _in_stateless_scope
from keras.src.backend.common.variables import AutocastScope
from keras.src.ops.function import make_node_key

# The class of keras.Model(inputs, outputs). keras.Model itself is public, but is also the base of subclassed
# models, which have no graph.
_input = keras.Input((1,), name="input")
Functional: type[keras.Model] = type(keras.Model(_input, keras.layers.Identity(name="output")(_input)))


def flatten_layers(
    layer: keras.Layer, include_self: bool = True, recursive: bool = True
) -> list[keras.Layer]:
    """A layer and every layer inside it, depth first, each once; or those directly inside only.

    `keras.Model.layers` is public, but lists the first level only, and layers that are no models have none.
    """
    return list(layer._flatten_layers(include_self=include_self, recursive=recursive))


def graph_of(model: keras.Model) -> Any:
    """The Functional model that a Functional or Sequential one is; None for a Sequential not yet built."""
    return model._functional if isinstance(model, keras.Sequential) else model


def nodes(model: Any) -> Iterator[Any]:
    """The nodes of a Functional model, each after those it depends on.

    `operations` is public, but says neither which tensors an operation is called on nor how often.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from model._nodes_by_depth[depth]


def structures(model: Any) -> tuple[Any, Any]:
    """The inputs and outputs of a Functional model in the structure it was made with.

    `model.inputs` and `model.outputs` are public, but flat.
    """
    return model._inputs_struct, model._outputs_struct


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """The arguments that a model was compiled with, as objects. `get_compile_config` serializes them."""
    return dict(model._compile_config.config)


def variables_read_as(dtype: str) -> Any:
    """A context in which layers' variables are read in this dtype, whatever the layer around computes in.

    A layer's `autocast=False` is public, but leaves the casting that the model around it has begun.
    """
    return AutocastScope(dtype)


# What walking a model object by object needs to know of the objects of Keras. `copy.deepcopy`, which is
# public, goes through `keras.saving` and so loses every class that is not registered, and every name that is
# not in a configuration.
NODE_LISTS = ("_inbound_nodes", "_outbound_nodes")
LOSSES_OF_A_CALL = ("_losses", "_loss_ids")
Tracker: type = type(keras.layers.Identity(name="tracker")._tracker)


def direct_layers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a layer itself holds, in the order in which Keras tracks them.

    `keras.Model.layers` is public, but other layers have no such attribute.
    """
    tracked = list(layer._layers)
    if isinstance(layer, keras.Sequential) or not isinstance(layer, keras.Function):
        return [
            each
            for each in tracked
            if not isinstance(each, keras.Function) or each is not graph_or_none(layer)
        ]
    in_order = [node.operation for node in nodes(layer) if isinstance(node.operation, keras.Layer)]
    return list({id(each): each for each in (*in_order, *tracked)}.values())


def graph_or_none(layer: Any) -> Any:
    """The graph that a Sequential keeps of itself, None for any other layer."""
    return layer._functional if isinstance(layer, keras.Sequential) else None


def storage_of(variable: keras.Variable) -> Any:
    """The backend's variable that a Keras variable holds; `value` is public, but may be a cast of it."""
    return variable._value


def in_stateless_scope() -> bool:
    """Whether the values of variables are those of a `keras.StatelessScope`, and not their own.

    The scope itself is public, but nothing public says whether one is open.
    """
    return bool(_in_stateless_scope())


def uncast_value(variable: keras.Variable) -> Any:
    """`variable.value` of a variable with `autocast=False`.

    `value` is public, but on PyTorch it takes three times as long to find out that there is nothing to cast.
    """
    if keras.backend.backend() != "torch" or _in_stateless_scope():
        return variable.value
    return variable._value


def is_rematerialized(layer: keras.Layer) -> bool:
    """Whether a layer was made in a `keras.RematScope`, which is public, but layers do not say it."""
    return layer._remat_mode is not None


def storage_types() -> tuple[type, ...]:
    """The types of `storage_of`, for the backend in use."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return (tf.Variable,)
    if backend == "torch":
        import torch

        return (torch.Tensor,)
    if backend == "jax":
        import jax

        return (jax.Array,)
    return ()


def module_types() -> tuple[type, ...]:
    """Classes of a backend whose objects are parts of a layer."""
    if keras.backend.backend() == "torch":
        import torch

        return (torch.nn.Module,)
    return ()


def producing_node(tensor: Any) -> Any:
    """The node whose output a symbolic tensor is, None if it has no history."""
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    recorded = history.operation._inbound_nodes
    return recorded[history.node_index] if history.node_index < len(recorded) else None


def start_without_calls(old: Any, new: Any, functions: tuple[str, ...]) -> None:
    """Give a copied operation empty records of its calls, and no compiled functions."""
    values = vars(new)
    for name in NODE_LISTS:
        values[name] = []
    for name in functions:
        if name in vars(old):
            values[name] = None
    if isinstance(old, keras.Layer):
        values.update(zip(LOSSES_OF_A_CALL, ([], set()), strict=True))
    # PyTorch's view of the variables is made anew when it is asked for.
    values.get("_modules", {}).pop("_torch_params", None)


def take_over_calls(old: Any, new: Any, copies: Any) -> None:
    """Give `new` the copies of the calls of `old`, as far as they were copied, and count them anew."""
    for name in NODE_LISTS:
        setattr_plain(new, name, [copies[id(node)] for node in vars(old)[name] if id(node) in copies])
    for index, node in enumerate(new._inbound_nodes):
        for position, tensor in enumerate(node.outputs):
            history = tensor._keras_history
            tensor._keras_history = type(history)(new, index, position)


def without_calls(operation: Any) -> Any:
    """The operation with an empty record of its calls, but for the one that makes an input what it is."""
    kept = () if isinstance(operation, keras.layers.InputLayer) else (NODE_LISTS[0],)
    for name in (*kept, NODE_LISTS[1]):
        setattr_plain(operation, name, [])
    return operation


def setattr_plain(target: Any, name: str, value: Any) -> None:
    """Set an attribute without Keras's tracking."""
    vars(target)[name] = value


def identities_stored(tracker: Any) -> dict[str, set[int]]:
    """The correct table of the identities of a tracker's objects."""
    return {name: {id(each) for each in store} for name, (_, store) in tracker.config.items()}


def graph_tables(model: Any) -> dict[str, Any]:
    """The tables of a Functional model that name its operations by their identity."""
    keys = {
        make_node_key(node.operation, vars(node.operation)[NODE_LISTS[0]].index(node))
        for node in nodes(model)
    }
    return {"_nodes": keys}


def rekeyed(optimizer: Any, variables: list[tuple[Any, Any]]) -> dict[str, Any]:
    """The attributes of an optimizer that are keyed by variables, with the keys of other variables."""
    if not hasattr(optimizer, "_var_key"):
        return {}
    keys = {optimizer._var_key(old): optimizer._var_key(new) for old, new in variables}
    result: dict[str, Any] = {}
    for name, value in vars(optimizer).items():
        if isinstance(value, dict) and value and all(key in keys for key in value):
            result[name] = type(value)((keys[key], each) for key, each in value.items())
        elif isinstance(value, set) and value and all(key in keys for key in value):
            result[name] = {keys[key] for key in value}
    return result


def get_mask(tensor: Any) -> Any:
    """The mask that Keras hands on with a tensor from layer to layer; None without one.

    There is no public name; `Layer.compute_mask` gives the mask of a single layer's output only.
    """
    return _get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Hand on a mask with a tensor, as Keras's layers do."""
    _set_keras_mask(tensor, mask)


def arguments_of_calls(layer: Any) -> list[dict[str, Any]]:
    """The keyword arguments of each symbolic call of a layer, as they are kept and will be passed."""
    return [node.arguments.kwargs for node in layer._inbound_nodes]


def is_optional(tensor: Any) -> bool:
    """Whether an input of a model, a symbolic tensor, may be None.

    `keras.layers.InputLayer` has the attribute `optional`, which is public, but the way to it is not.
    """
    return bool(getattr(tensor._keras_history.operation, "optional", False))


def stored_as_batch_normalization(store: Any) -> dict[str, Any]:
    """The variables that a weights file has for a layer of Keras's class in the place of this one.

    Files name layers by their classes and their order, so a subclass does not find what was saved for Keras's
    layer. `load_own_variables` is public, but the path that its store stands at is not.

    Args:
        store: As `Layer.load_own_variables` takes it. It is empty where the file has nothing for the class.
    """
    path, file = getattr(store, "_h5_entry_path", None), getattr(store, "h5_file", None)
    if not path or file is None:
        return {}
    parent, _, name = path.rpartition("/")
    number = name.rpartition("_")[2]
    name = "batch_normalization" + (f"_{number}" if number.isdigit() else "")
    entry = f"{parent}/{name}/vars"
    return {key: value[()] for key, value in file[entry].items()} if entry in file else {}


def has_losses_of_a_call(layer: keras.Layer) -> bool:
    """Whether `add_loss` was called on a layer. `losses`, which is public, has those of regularizers too."""
    return bool(layer._losses)


def converts_inputs(layer: Any) -> bool:
    """Whether a layer casts its inputs to its compute dtype before it calls `call`."""
    return bool(layer._convert_input_args)


@contextmanager
def calls_forgotten(layers: list[Any], always: bool = True) -> Iterator[None]:
    """The calls recorded inside are dropped from layers afterwards; if not `always`, on an error only."""
    counts = [(layer, name, len(vars(layer)[name])) for layer in layers for name in NODE_LISTS]
    failed = True
    try:
        yield
        failed = False
    finally:
        if always or failed:
            for layer, name, count in counts:
                del vars(layer)[name][count:]


def calls_kept_on_error(layers: list[Any]) -> Any:
    """On an error inside, layers forget the calls recorded there."""
    return calls_forgotten(layers, always=False)
