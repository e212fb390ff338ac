"""Checks of the layers' constructor arguments: each refuses with the value and the allowed range."""

import numbers
import operator
from itertools import pairwise
from typing import Any

import numpy as np

from keras_bn.errors import KerasBNError
from keras_bn.statistics.moments import reduction_axes

# The gradient has gamma / epsilon in a constant channel, times 0. In float32 that overflows near the smallest
# normal number, 1.2e-38, and infinity times 0 is NaN; from here on gamma may reach 1e8.
_LEAST_EPSILON, _LARGEST_EPSILON = 1e-30, 1e30


def _refuse(layer: str, argument: str, value: Any, allowed: str) -> KerasBNError:
    return KerasBNError(f"Layer {layer!r}: {argument} must be {allowed}, but it is {value!r}.")


def is_number(value: Any) -> bool:
    """Whether it is a real number, which a bool is not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def checked_flag(flag: Any, argument: str, layer: str) -> bool:
    """`flag` as a bool; what merely counts as true or false, such as "no", is likely a mistake."""
    if not isinstance(flag, (bool, np.bool_)):
        raise _refuse(layer, argument, flag, "True or False")
    return bool(flag)


def checked_axis(axis: Any, layer: str) -> int:
    """`axis` as an int; which axes there are is known only when the layer is built."""
    if isinstance(axis, (list, tuple)) and len(axis) == 1:  # as tf.keras used to save it
        axis = axis[0]
    if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
        raise _refuse(layer, "axis", axis, "one integer")
    return int(axis)


def checked_momentum(momentum: Any, layer: str) -> float | None:
    """`momentum` as a float in [0, 1), or None."""
    if momentum is None:
        return None
    if not is_number(momentum) or not 0 <= momentum < 1:
        raise _refuse(layer, "momentum", momentum, "in [0, 1), or None for the cumulative average")
    return float(momentum)


def checked_epsilon(epsilon: Any, layer: str) -> float:
    """`epsilon` as a float that float32 can compute with."""
    if not is_number(epsilon) or not _LEAST_EPSILON <= epsilon <= _LARGEST_EPSILON:
        allowed = f"a number in [{_LEAST_EPSILON:g}, {_LARGEST_EPSILON:g}]"
        raise _refuse(layer, "epsilon", epsilon, allowed)
    return float(epsilon)


def check_unused(flag: str, weight: str, regularizer: Any, constraint: Any, layer: str) -> None:
    """Refuse the options of a weight that `flag`, center or scale, leaves out when it is False."""
    for kind, option in (("regularizer", regularizer), ("constraint", constraint)):
        if option is not None:
            raise KerasBNError(
                f"Layer {layer!r}: {weight}_{kind} is {option!r}, but {flag}=False leaves no {weight}; "
                f"leave {weight}_{kind} None or set {flag}=True."
            )


def checked_size(size: Any, argument: str, layer: str, least: int = 1) -> int:
    """`size` as an int of at least `least`."""
    if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < least:
        raise _refuse(layer, argument, size, f"an integer of at least {least}")
    return int(size)


def checked_schedule(value: Any, argument: str, layer: str, least: float) -> list[tuple[int, float]]:
    """A number, or points (step, number) with increasing steps, as a list of points."""
    points = [(0, value)] if is_number(value) else value
    try:
        points = [(operator.index(step), number) for step, number in points]
    except (TypeError, ValueError):
        points = []
    steps = [step for step, _ in points]
    if (
        not points
        or not all(is_number(number) and least <= number < float("inf") for _, number in points)
        or any(later <= earlier for earlier, later in pairwise(steps))
    ):
        allowed = f"a finite number of at least {least}, or points (step, number) with increasing steps"
        raise _refuse(layer, argument, value, allowed)
    return [(step, float(number)) for step, number in points]


# Arguments of the other layers of this name, with what to do instead.
_OTHER_ARGUMENTS = {
    "renorm": "use keras_bn.BatchRenormalization",
    "renorm_clipping": "use keras_bn.BatchRenormalization, with r_max and d_max",
    "renorm_momentum": "use keras_bn.BatchRenormalization, which has one momentum",
    "virtual_batch_size": "use keras_bn.GhostBatchNormalization(virtual_batch_size=...)",
    "fused": "leave it out; the layer chooses the fastest kernel by itself",
    "adjustment": "scale and shift the outputs in a layer of your own after this one",
}


def without_other_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those of Keras's and tf_keras's layers that have their default value.

    Those layers write their defaults into their configs, which must load here.

    Raises:
        KerasBNError: If one of them requests the function of another layer.
    """
    if not kwargs.get("renorm") and kwargs.get("renorm_clipping") is None:
        kwargs = {name: value for name, value in kwargs.items() if name != "renorm_momentum"}
    for name, advice in _OTHER_ARGUMENTS.items():
        if kwargs.get(name) not in (None, False):
            layer = kwargs.get("name") or "BatchNormalization"
            raise KerasBNError(f"Layer {layer!r}: {name}={kwargs[name]!r} is not an argument; {advice}.")
    return {name: value for name, value in kwargs.items() if name not in _OTHER_ARGUMENTS}


def check_several_values(shape: tuple[int | None, ...], kept: int | tuple[int, ...], layer: str) -> None:
    """Refuse to train on inputs whose static shape says that each channel has one value."""
    if 1 in shape and all(shape[a] == 1 for a in reduction_axes(len(shape), kept)):
        raise KerasBNError(
            f"Layer {layer!r}: inputs of shape {shape} have one value per channel, so there is no "
            f"variance to normalize by; train on larger batches or set frozen_statistics."
        )
