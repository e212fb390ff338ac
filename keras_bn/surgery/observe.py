"""What goes into a model's normalizations: one trace of the model, from which any part can be run.

Each chosen layer's `call` is replaced while the model is traced, so it works wherever the layer is called: in
nested models, inside wrappers, several times, with a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from keras_bn.data import Batches
from keras_bn.errors import KerasBNError
from keras_bn.statistics.moments import reduction_axes
from keras_bn.statistics.population import PopulationMoments, device_moments
from keras_bn.surgery._state import state_kept

# What a layer gives while it is observed, from the layer, its inputs, and their mean and variance.
Output: TypeAlias = Callable[[keras.Layer, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class _Site:
    """One call of one layer: its input and output in the trace, the moments and some values of the input."""

    layer: keras.Layer
    inputs: tf.Tensor
    outputs: tf.Tensor
    moments: tuple[tf.Tensor, tf.Tensor, tf.Tensor]
    sample: tf.Tensor


class Observer:
    """A model traced at inference with an eye on some of its normalizations.

    Args:
        model: a built model. It is left as it was.
        layers: the layers to observe, each called at least once; their `axis` is that of the channels.
        example: one batch of inputs; gives the structure and the dtypes.
        output: what the observed layers give meanwhile, such as `normalized_by_batch`; None for what they
            give at inference. All other layers are in inference mode either way.

    Raises:
        KerasBNError: if a layer runs inside a loop or a function of its own, where its input cannot be had.
    """

    def __init__(
        self, model: keras.Model, layers: Sequence[keras.Layer], example: Any, output: Output | None = None
    ) -> None:
        self._model = model
        self._sites: list[_Site] = []
        batch = _specification(model, example)
        signature = tf.nest.flatten(batch, expand_composites=True)

        def run(*inputs: tf.Tensor) -> tf.Tensor:
            with _replaced_calls(layers, lambda layer, call: self._observing(layer, call, output)):
                packed = tf.nest.pack_sequence_as(batch, inputs, expand_composites=True)
                return model(packed, training=False)

        self._dtypes = [spec.dtype for spec in signature]
        self._function = tf.compat.v1.wrap_function(run, signature)
        self._feeds = self._function.inputs[: len(signature)]
        for site in self._sites:
            if site.inputs.graph is not self._function.graph:
                raise KerasBNError(
                    f"{site.layer.name!r} runs inside a loop or a tf.function of its own, where its inputs "
                    "cannot be observed; leave it out with layers=."
                )

    def levels(self) -> list[list[keras.Layer]]:
        """The layers in order of dependence: each level's inputs depend on the levels before it alone.

        Raises:
            KerasBNError: if a layer that is called several times feeds itself.
        """
        upstream = self._upstream()
        level: dict[keras.Layer, int] = {}
        waiting = dict(upstream)
        while waiting:
            ready = [layer for layer, needs in waiting.items() if needs <= level.keys()]
            if not ready:
                raise KerasBNError(
                    f"{next(iter(waiting)).name!r} is called several times and its own output comes back "
                    f"to it, so no "
                    "order of the layers is sequential; use estimator='batch'."
                )
            for layer in ready:
                level[layer] = 1 + max((level[other] for other in upstream[layer]), default=-1)
                del waiting[layer]
        ordered: list[list[keras.Layer]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
        for layer, depth in level.items():
            ordered[depth].append(layer)
        return ordered

    def moments(
        self, layers: Sequence[keras.Layer], data: Iterable[Any]
    ) -> dict[keras.Layer, PopulationMoments]:
        """The moments of the inputs of `layers` over `data`, pooled over all calls of a layer.

        Only what these layers need is run, and one batch is held at a time. A layer that is never called has
        no entry.

        Raises:
            KerasBNError: if the inputs of a layer are not finite.
        """
        sites = [site for site in self._sites if site.layer in layers]
        step = self._function.prune(self._feeds, [site.moments for site in sites])
        result = {site.layer: PopulationMoments(site.moments[1].shape[0]) for site in sites}
        with state_kept(self._model):
            for batch in data:
                for site, (count, mean, variance) in zip(sites, step(*self._tensors(batch)), strict=True):
                    _check_finite(site.layer, variance)
                    result[site.layer].update_moments(int(count), mean.numpy(), variance.numpy())
        return result

    def samples(self, batch: Any) -> dict[keras.Layer, NDArray[np.floating]]:
        """Up to 512 rows of the inputs of every layer, evenly spread over the batch, `(rows, channels)`.

        Of a layer that is called several times they are those of its last call.
        """
        step = self._function.prune(self._feeds, [site.sample for site in self._sites])
        with state_kept(self._model):
            values = step(*self._tensors(batch))
        return {site.layer: value.numpy() for site, value in zip(self._sites, values, strict=True)}

    def _tensors(self, batch: Any) -> list[tf.Tensor]:
        leaves = tf.nest.flatten(batch, expand_composites=True)
        return [tf.convert_to_tensor(x, dtype) for x, dtype in zip(leaves, self._dtypes, strict=True)]

    def _observing(
        self, layer: keras.Layer, call: Callable[..., Any], output: Output | None
    ) -> Callable[..., Any]:
        def observe(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            inputs = tf.identity(inputs)
            moments = device_moments(inputs, layer.axis, mask)
            given = output(layer, inputs, *moments[1:]) if output else call(inputs, training=training)
            outputs = tf.identity(given)
            self._sites.append(_Site(layer, inputs, outputs, moments, _sample(inputs, layer.axis)))
            return outputs

        return observe

    def _upstream(self) -> dict[keras.Layer, set[keras.Layer]]:
        """For every layer the observed layers its inputs depend on."""
        outputs = {site.outputs.op: site.layer for site in self._sites}
        behind: dict[Any, frozenset[keras.Layer]] = {}
        for op in self._function.graph.get_operations():  # in the order of creation, so inputs come first
            behind[op] = frozenset().union(*(behind[tensor.op] for tensor in op.inputs))
            if op in outputs:
                behind[op] |= {outputs[op]}
        result: dict[keras.Layer, set[keras.Layer]] = {}
        for site in self._sites:
            result.setdefault(site.layer, set()).update(behind[site.inputs.op])
        return result


def normalized_by_batch(
    layer: keras.Layer, inputs: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor
) -> tf.Tensor:
    """What BN gives in training, whichever class the layer is of."""
    dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
    outputs = keras.ops.batch_normalization(
        tf.cast(inputs, dtype),
        tf.cast(mean, dtype),
        tf.cast(variance, dtype),
        axis=layer.axis,
        offset=tf.cast(layer.beta, dtype) if layer.center else None,
        scale=tf.cast(layer.gamma, dtype) if layer.scale else None,
        epsilon=layer.epsilon,
    )
    return tf.cast(outputs, inputs.dtype)


def peek(source: Batches) -> tuple[Any, Iterable[Any]]:
    """The first batch, and all of them: as often as wanted if they can be walked again."""
    iterator = iter(source)
    first = next(iterator)
    return first, source if source.reiterable else chain([first], iterator)


def _check_finite(layer: keras.Layer, variance: tf.Tensor) -> None:
    if not np.isfinite(variance).all():
        raise KerasBNError(
            f"The inputs of {layer.name!r} are not finite on this data, so they have no statistics; check "
            "the scale of the data and the weights of the layers before it, or use a wider dtype."
        )


@contextmanager
def _replaced_calls(layers: Sequence[keras.Layer], wrap: Callable[..., Callable[..., Any]]) -> Iterator[None]:
    try:
        for layer in layers:
            layer.call = wrap(layer, layer.call)
        yield
    finally:
        for layer in layers:
            if "call" in vars(layer):
                del layer.call


def _specification(model: keras.Model, example: Any) -> Any:
    """The structure of a batch of any number of examples."""
    leaves = [x if tf.is_tensor(x) else tf.convert_to_tensor(x) for x in tf.nest.flatten(example)]
    declared = [tensor.shape for tensor in getattr(model, "inputs", None) or []]
    if len(declared) != len(leaves):
        declared = [()] * len(leaves)
    specs = []
    for leaf, shape in zip(leaves, declared, strict=True):
        if len(shape) != len(leaf.shape):  # not known, or an axis of length 1 that Keras adds
            shape = (None, *leaf.shape[1:])
        sparse = isinstance(leaf, tf.SparseTensor)
        specs.append((tf.SparseTensorSpec if sparse else tf.TensorSpec)(shape, leaf.dtype))
    return tf.nest.pack_sequence_as(example, specs)


def _sample(inputs: tf.Tensor, axis: int, rows: int = 512) -> tf.Tensor:
    rank = inputs.shape.rank
    last = tf.transpose(inputs, [*reduction_axes(rank, axis), axis % rank])
    values = tf.reshape(last, [-1, inputs.shape[axis]])
    return values[:: tf.maximum(1, tf.shape(values)[0] // rows)][:rows]
