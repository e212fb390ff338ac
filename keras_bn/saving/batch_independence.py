"""Measure how much the outputs for an example depend on the other rows of its request."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_bn.errors import CheckFailedError, KerasBNError
from keras_bn.saving.check import InferenceCheck
from keras_bn.saving.examples import Tensors, generated, given
from keras_bn.saving.session import Servable, servable

# The kernels of TensorFlow (oneDNN, Eigen) choose their blocking, hence the order of their sums, by the size
# of the batch, so an example's output moves in its last bits with the size of the batch around it. Batch
# statistics move it in its first ones. The narrowest floating type in the graph says where its last bits are.
_TOLERANCES = {tf.bfloat16: 1e-1, tf.float16: 2e-2, tf.float32: 1e-4, tf.float64: 1e-10}

_LARGEST_BATCH = 8  # rows of a request; more examples than these do not make the check stronger
_ROWS = 3  # rows whose answers are compared while the others are replaced

_CAUSES = (
    "The cause is a layer in training mode (call the model with training=False), or a mean, a maximum or "
    "a softmax over the batch axis."
)


def check_signature(path: str | os.PathLike[str], examples: Any, signature: str) -> InferenceCheck:
    """See `keras_bn.verify_inference_mode`, which has the same arguments."""
    with servable(path, signature) as served:
        made_up = generated(served.inputs, served.batch_size)
        batches = made_up if examples is None else [given(served.inputs, examples)]
        what = f"signature {signature!r} of {path}"
        return check(served, batches, what, made_up=examples is None).check


@dataclass(frozen=True)
class Checked:
    """A check, and the batch of inputs and outputs that it started from."""

    check: InferenceCheck
    inputs: Tensors
    outputs: Tensors


def check(
    served: Servable, batches: Iterable[Tensors], what: str, *, made_up: bool = False, warn: bool = True
) -> Checked:
    """Check `what` on the first of `batches` whose outputs differ, else on the last."""
    for batch in batches:
        try:
            checked = _check(served, _map(batch, lambda values: values[:_LARGEST_BATCH]), what)
        except tf.errors.OpError as error:
            hint = " on generated inputs; pass examples of real ones" if made_up else ""
            raise KerasBNError(f"{what} failed{hint}: {error.message}") from error
        if served.batch_size == 1:
            if warn:
                warnings.warn(_of_one_example(served, what), stacklevel=3)
            return checked
        if checked.check.spread > checked.check.tolerance:
            return checked
    if warn:
        warnings.warn(
            f"{what} gave every example nearly the same output, so that none changes another says "
            "little; pass examples of which the outputs differ.",
            stacklevel=3,
        )
    return checked


def _of_one_example(served: Servable, what: str) -> str:
    """What the check of a fixed batch size of 1 leaves open."""
    normalized = ", ".join(served.in_training)
    return (
        f"{what} takes one example at a time, so there are no other rows to compare, and a layer in training "
        "mode, which normalizes an example by its own statistics, cannot be told by its answers. "
        + (
            f"These operations normalize in that way: {normalized}. "
            if normalized
            else "No fused normalization in its graph is in training mode. "
        )
        + "To check the rest, export the model without a fixed batch size."
    )


def tolerance_of(served: Servable) -> float:
    """The change, relative to the largest output, that rounding can cause."""
    return next(value for dtype, value in _TOLERANCES.items() if dtype in served.dtypes | {tf.float64})


def _check(served: Servable, batch: Tensors, what: str) -> Checked:
    if not any(np.ndim(values) for values in batch.values()):
        raise KerasBNError(f"{what} has no input with an axis of examples, so it has no rows to compare.")
    count = _count(batch)
    if count < 2 and served.batch_size != 1:
        raise KerasBNError(f"{what} was given {count} example; one cannot be seen to change another.")
    tolerance = tolerance_of(served)
    together = served.run(batch)
    for name, output in together.items():
        _check_rows(output, count, f"output {name!r} of {what}")
    again = largest_change(served.run(batch), together)
    if again > tolerance:
        raise CheckFailedError(
            f"{what} answers the same request differently each time (by {again:.2g} of its largest output): "
            "something random, such as dropout, is left on, or a state is kept from one request to the "
            "next; call the layers with training=False, and keep no state."
        )
    difference, asked = 0.0, 2
    for change, request, here, there in _compositions(batch, served.batch_size):
        try:
            answer = served.run(request)
        except tf.errors.OpError:  # a value that the model does not take says nothing of the other rows
            continue
        asked += 1
        found = {name: values[here] for name, values in answer.items()}
        moved = largest_change(found, together, there, padded=True)
        if moved > tolerance:
            raise CheckFailedError(
                f"{what} depends on the other rows of a request: the answer to an example changes by "
                f"{moved:.2g} of the largest output {change} ({tolerance:g} is rounding). {_CAUSES}"
            )
        difference = max(difference, moved)
    spread = max(largest_change(together, together, slice(row, row + 1)) for row in range(count))
    return Checked(
        InferenceCheck(served.signature, count, asked, difference, tolerance, spread), batch, together
    )


def _compositions(batch: Tensors, batch_size: int | None) -> Iterator[tuple[str, Tensors, slice, slice]]:
    """Requests that hold rows of `batch` among others: what was done, the request, where the rows are in it,
    and where they are in `batch`."""
    count = _count(batch)
    everything = slice(None)
    yield (
        "when the rows are in reverse order",
        _map(batch, lambda v: v[::-1]),
        slice(None, None, -1),
        everything,
    )
    for row in range(min(count, _ROWS)):
        here = slice(row, row + 1)
        for change, others in _others(batch, row):
            if others is not None:
                yield f"when {change}", others, here, here
        if batch_size is None:
            yield "when it is sent alone", _map(batch, lambda v, here=here: v[here]), slice(1), here
    if batch_size is None:
        yield (
            "when the request is twice as long",
            _map(batch, lambda v: np.concatenate([v, v])),
            slice(count),
            everything,
        )


def _others(batch: Tensors, row: int) -> Iterator[tuple[str, Tensors | None]]:
    """Batches in which all rows but `row` are replaced."""
    count = _count(batch)
    if count < 2:
        return
    rows = np.arange(count)
    rotated = np.roll(np.delete(rows, row), 1)
    yield "the other rows change places", _map(batch, lambda v: v[np.insert(rotated, row, row)])
    one = np.full(count, (row + 1) % count)
    one[row] = row
    yield "the other rows become one example", _map(batch, lambda v: v[one])
    yield "the other rows become copies of it", _map(batch, lambda v: v[np.full(count, row)])
    for change, function in (
        ("are 16 times as large", lambda v: 16 * v),
        ("are 4096 times as large", lambda v: 4096 * v),
        ("are 16 times as small", lambda v: v / 16),
        ("change their sign", lambda v: -v),
    ):
        yield f"the other rows {change}", _replaced(batch, row, function, np.floating)
    yield "the other rows grow by one", _replaced(batch, row, lambda v: v + 1, np.integer)
    for change, function in (("lowest", np.min), ("highest", np.max)):
        filled = _replaced(batch, row, lambda v, f=function: np.full_like(v, f(v)), np.number)
        yield f"the other rows are filled with their {change} value", filled


def _replaced(batch: Tensors, row: int, function: Any, kind: type) -> Tensors | None:
    """`batch` with `function` of each input of a kind in place of all rows but one, or None."""
    replaced = {}
    for name, values in batch.items():
        floating = _is_floating(values) and kind is not np.integer
        if np.ndim(values) and (floating or np.issubdtype(values.dtype, kind)):
            changed = function(values).astype(values.dtype)
            changed[row] = values[row]
            replaced[name] = changed
    return {**batch, **replaced} if replaced else None


def _map(batch: Tensors, function: Any) -> Tensors:
    """`batch` with `function` of each input; a scalar input has no rows, and stays what it is."""
    return {name: function(values) if np.ndim(values) else values for name, values in batch.items()}


def _count(batch: Tensors) -> int:
    return next(len(values) for values in batch.values() if np.ndim(values))


def _check_rows(output: np.ndarray, count: int, what: str) -> None:
    if output.shape[:1] != (count,):
        raise KerasBNError(
            f"{what} has shape {output.shape} for {count} examples; it must have a row for each."
        )
    # The logarithm of no probability, or a logit that is masked, is -inf.
    wide = output.astype(np.float64) if _is_floating(output) else np.zeros(1)
    if not (np.isfinite(wide) | np.isneginf(wide)).all() or (wide.size and np.isneginf(wide).all()):
        raise KerasBNError(
            f"{what} is not finite; check the weights for NaN, or pass examples of real inputs."
        )


def _is_floating(values: np.ndarray) -> bool:
    return values.dtype != object and tf.as_dtype(values.dtype).is_floating


def largest_change(
    tensors: Tensors, reference: Tensors, rows: slice = slice(None), *, padded: bool = False
) -> float:
    """The largest change from `rows` of `reference`, relative to its largest magnitude; 1 for other types,
    and where infinity comes or goes.

    Args:
        padded: If True, the length of an output may depend on the longest example of its request. What both
            have is compared. If False, another shape is a change of 1.
    """
    worst = 0.0
    for name, expected in reference.items():
        found, wanted = tensors[name], expected[rows]
        if padded and found.ndim == wanted.ndim:
            found, wanted = _in_common(found, wanted)
        if found.shape[1:] != wanted.shape[1:]:
            return 1.0
        if _is_floating(expected):
            found, wanted, wide = (each.astype(np.float64) for each in (found, wanted, expected))
            scale = np.abs(wide).max(initial=0.0, where=np.isfinite(wide)) or 1.0
            change = np.abs(np.subtract(found, wanted, where=found != wanted, out=np.zeros(found.shape)))
            worst = max(worst, float(np.where(np.isinf(change), scale, change).max(initial=0.0) / scale))
        else:
            worst = max(worst, float(np.any(found != wanted)))
    return worst


def _in_common(*arrays: np.ndarray) -> list[np.ndarray]:
    """The parts of arrays that all of them have along every axis but the first."""
    lengths = np.min([array.shape[1:] for array in arrays], axis=0).astype(int)
    common = (slice(None), *map(slice, lengths))
    return [array[common] for array in arrays]
