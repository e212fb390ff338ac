"""Gamma and beta of a normalization such that each channel has the moments it had before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_bn.statistics.moments import reduction_axes
from keras_bn.surgery._replaced_calls import replaced_calls
from keras_bn.surgery._state import state_kept

Moments = tuple[np.ndarray, np.ndarray]
# Below it, a channel does not vary.
_TINY = 1e-12


def output_moments(model: Any, layers: Sequence[Any], inputs: Any) -> dict[int, Moments]:
    """Mean and standard deviation per channel of what layers give at inference, by the layer's `id`.

    Of a layer that is called several times they are those of its first call. One that is never called has no
    entry.
    """
    found: dict[int, Moments] = {}

    def observe(layer: Any, outputs: Any) -> Any:
        found.setdefault(id(layer), _moments(outputs, layer.axis))
        return outputs

    if layers:
        _run(model, layers, inputs, observe)
    return found


def calibrate(model: Any, targets: Sequence[tuple[Any, int, Moments]], inputs: Any) -> dict[int, float]:
    """Set gamma and beta of normalizations such that their outputs have the given moments.

    With outputs of mean m and deviation s, gamma is multiplied by t / s for a deviation t that is wanted, and
    beta is what the mean then lacks. The model runs once: a layer is set when it is reached, and goes on with
    what it then gives, so that those behind it are set for the inputs they will have.

    Args:
        model: the model, in which the layers have gamma and beta.
        targets: layers, each with their channel axis and the mean and deviation of each channel.
        inputs: all of the data, as one batch.

    Returns:
        By the layer's `id` how far a mean or deviation then is from the one wanted, relative to the largest
        deviation. A layer that is never called has no entry.
    """
    wanted = {id(layer): (axis, moments) for layer, axis, moments in targets}
    layers = [layer for layer, _, _ in targets]
    settled: set[int] = set()
    left: dict[int, float] = {}

    def settle(layer: Any, outputs: Any) -> None:
        if id(layer) in settled:
            return
        settled.add(id(layer))
        axis, (mean, deviation) = wanted[id(layer)]
        found_mean, found_deviation = _moments(outputs, axis)
        factor = deviation / np.maximum(found_deviation, _TINY)
        gamma, beta = (ops.convert_to_numpy(weight).astype("float64") for weight in (layer.gamma, layer.beta))
        layer.gamma.assign(gamma * factor)
        layer.beta.assign(mean - (found_mean - beta) * factor)

    def check(layer: Any, outputs: Any) -> None:
        axis, (mean, deviation) = wanted[id(layer)]
        found_mean, found_deviation = _moments(outputs, axis)
        apart = max(np.abs(found_mean - mean).max(), np.abs(found_deviation - deviation).max())
        left.setdefault(id(layer), float(apart / max(deviation.max(), _TINY)))

    if layers:
        _run(model, layers, inputs, settle, again=True)
        _run(model, layers, inputs, check)
    return left


def _run(
    model: Any, layers: Sequence[Any], inputs: Any, see: Callable[[Any, Any], None], again: bool = False
) -> None:
    """Run the model at inference and show the outputs of layers to `see`; compute them `again` afterwards."""

    def seeing(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            see(layer, outputs)
            return call(*args, **kwargs) if again else outputs

        return run

    with replaced_calls(layers, seeing), state_kept(model):
        model(inputs, training=False)


def _moments(outputs: Any, axis: int) -> Moments:
    values = ops.convert_to_numpy(ops.cast(ops.stop_gradient(outputs), "float64"))
    axes = tuple(reduction_axes(values.ndim, axis))
    return values.mean(axes), values.std(axes)
