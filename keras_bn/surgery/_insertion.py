"""The edits of a retrofit: normalizations inserted, activations split out, regularization reduced."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bn.errors import KerasBNError
from keras_bn.statistics.moments import along
from keras_bn.statistics.population import PopulationMoments
from keras_bn.surgery import _regularization
from keras_bn.surgery._copying import Copies, called_alike
from keras_bn.surgery._placement import Place
from keras_bn.surgery.graph import Call
from keras_bn.surgery.normalizations import averaged_variance
from keras_bn.surgery.report import Row


class Insertion:
    """The edits of one retrofit, and what they made.

    Attributes:
        rows: what was done besides inserting.
    """

    def __init__(
        self,
        places: list[Place],
        layer: type,
        layer_arguments: dict[str, Any],
        drop_bias: bool,
        remove_dropout: bool,
        l2_factor: float,
    ) -> None:
        self._places = {place.call.path: place for place in places}
        self._after = {place.after.path: place for place in places}
        self._layer, self._layer_arguments = layer, layer_arguments
        self._drop_bias, self._remove_dropout, self._l2_factor = drop_bias, remove_dropout, l2_factor
        self._inserted: dict[str, Any] = {}
        self._wrappers: dict[int, tuple[Any, Any]] = {}
        self.rows: list[Row] = []

    def layer_at(self, place: Place) -> Any:
        """The normalization that was inserted at a place, built.

        Raises:
            KerasBNError: if it lacks what it takes to be the identity.
        """
        layer = self._inserted[place.call.path]
        vectors = [getattr(layer, name, None) for name in ("gamma", "beta", "moving_mean", "moving_variance")]
        if any(vector is None or len(vector.shape) != 1 for vector in vectors):
            raise KerasBNError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be made the identity: it needs gamma, "
                "beta, moving_mean and moving_variance, one value per channel each."
            )
        return layer

    def bias_dropped_at(self, place: Place) -> np.ndarray | None:
        """The bias that the layer at a place loses, None if it has none or keeps it."""
        layer = place.layer
        return ops.convert_to_numpy(layer.bias) if self._drop_bias and layer.use_bias else None

    def edit(self, call: Call, copy: Copies) -> list[Any] | None:
        """The layers to call instead, for `rewrite`."""
        if self._remove_dropout and _regularization.is_dropout(call.layer):
            reason = "gives an output of the model" if call.is_output else ""
            self._note(call, "left alone" if reason else "removed", reason)
            return None if reason else []
        chain = [self._copied(call, copy)]
        if place := self._after.get(call.path):
            chain.append(self._normalization(place))
            chain += _split_out(place)
        return chain

    def _copied(self, call: Call, copy: Copies) -> Any:
        layer = call.own_layer
        changes: dict[str, Any] = {}
        if self._l2_factor != 1.0 and (changes := _regularization.scaled_l2(layer, self._l2_factor)):
            self._note(call, "L2 scaled", f"by {self._l2_factor:g}: {', '.join(sorted(changes))}")
        place = self._places.get(call.path)
        if place and place.activation is not None:
            changes |= {"activation": "linear", "activity_regularizer": None}
        if place and self.bias_dropped_at(place) is not None:
            kept = [ops.convert_to_numpy(weight) for weight in layer.weights if weight is not layer.bias]
            return self._called_alike(call, copy(layer, kept, use_bias=False, **changes))
        return self._called_alike(call, copy(layer, **changes)) if changes else copy(call.layer)

    def _called_alike(self, call: Call, layer: Any) -> Any:
        """A changed layer as the old one is called; a TimeDistributed that is called twice stays one."""
        if call.own_layer is call.layer:
            return layer
        if id(call.layer) not in self._wrappers:
            self._wrappers[id(call.layer)] = call.layer, called_alike(call.layer, layer)
        return self._wrappers[id(call.layer)][1]

    def _normalization(self, place: Place) -> Any:
        layer = place.layer
        arguments = {"trainable": layer.trainable, **self._layer_arguments}
        try:
            made = self._layer(
                name=place.call.name_for("bn"), axis=place.axis, dtype=_policy(layer), **arguments
            )
        except (TypeError, ValueError) as error:
            raise KerasBNError(
                f"{self._layer.__name__} cannot be constructed with {self._layer_arguments}: {error}"
            ) from error
        self._inserted[place.call.path] = made
        return made

    def _note(self, call: Call, action: str, reason: str) -> None:
        self.rows.append(Row(call.own_path, type(call.own_layer).__name__, action, reason))


def make_identity(layer: Any, bias: np.ndarray | None, moments: PopulationMoments) -> None:
    """Set the weights such that inference returns its input, plus the bias if there is one to absorb.

    Args:
        layer: the normalization.
        bias: `(channels,)`, or None.
        moments: of its input; a cumulative average goes on from there.
    """
    if not moments.count:
        raise KerasBNError(f"No value of the data reaches {layer.name!r}: its mask leaves nothing.")
    mean = moments.mean.astype(layer.moving_mean.dtype)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(averaged_variance(layer, moments))
    layer.gamma.assign(ops.sqrt(ops.convert_to_tensor(layer.moving_variance) + layer.epsilon))
    layer.beta.assign(mean if bias is None else mean + bias)
    if getattr(layer, "batches_seen", None) is not None:
        layer.batches_seen.assign(ops.full(layer.batches_seen.shape, moments.batches))


def identity_row(place: Place, layer: Any, bias: np.ndarray | None) -> Row:
    """The row of an insertion, with the change measured on values that are distributed like its input."""
    rank, channels = len(place.after.node.outputs[0].shape), layer.moving_mean.shape[0]
    values = np.random.default_rng(0).normal(size=(64, *[1] * (rank - 2), channels))
    values = values * ops.convert_to_numpy(layer.gamma) + ops.convert_to_numpy(layer.moving_mean)
    x = ops.cast(np.moveaxis(values, -1, place.axis), layer.compute_dtype)
    expected = x if bias is None else x + ops.cast(along(bias, rank, place.axis), x.dtype)
    difference = ops.max(ops.abs(ops.cast(layer(x, training=False) - expected, "float32")))
    reason = f"{layer.name} inserted" + ("" if place.after is place.call else f" after {place.after.path}")
    reason += ", activation split out" if place.activation is not None else ""
    reason += ", bias absorbed" if bias is not None else ""
    return Row(
        place.call.own_path,
        type(place.layer).__name__,
        "retrofitted",
        reason,
        float(ops.convert_to_numpy(difference)),
    )


def _split_out(place: Place) -> list[Any]:
    """The fused activation as a layer of its own, with the activity regularizer, which acts on its output."""
    activation, layer = place.activation, place.layer
    if activation is None:
        return []
    if isinstance(activation, keras.Layer):
        name = place.call.name_for(activation.name)
        return [
            called_alike(
                place.call.layer, type(activation).from_config(activation.get_config() | {"name": name})
            )
        ]
    function = getattr(activation, "__name__", "")
    name = place.call.name_for(function if function.isidentifier() else "activation")
    regularizer = layer.activity_regularizer
    made = keras.layers.Activation(
        activation, name=name, dtype=_policy(layer), activity_regularizer=regularizer
    )
    return [called_alike(place.call.layer, made, name)]


def _policy(layer: Any) -> Any:
    """The dtype policy for what goes with a layer; one that is quantized or a map is the layer's own."""
    policy = layer.dtype_policy
    return policy if type(policy) is keras.DTypePolicy else layer.compute_dtype
