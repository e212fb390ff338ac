"""Compare data with the reference that is stored in an export."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from keras_bn.errors import KerasBNError
from keras_bn.saving import reference
from keras_bn.statistics.drift import DriftReport, compare


def drift(
    path: str | os.PathLike[str],
    data: Any,
    *,
    model: keras.Model | None = None,
    alpha: float = 0.01,
    batch_size: int | None = None,
    steps: int | None = None,
) -> DriftReport:
    """Compare data, such as real requests, with the reference that is stored in an export.

    The inputs of the model are compared, and with `model` the inputs of its BN layers too. Each example is
    described by four numbers per tensor, and these are compared by `compare`.

    Note: `alpha` bounds the rate of false alarms for independent examples. Consecutive frames of a video are
    not independent, so take one of each scene.

    Args:
        path: A version that was exported with `reference=`, or the folder of the model's versions, of which
            the highest is used.
        data: The sample: an array, a dict of arrays by input name, an iterable of either, or the file of a
            request log of TF Serving. With `model`, data in any form that `Model.predict` accepts, or the
            file of a log.
        model: The Keras model that was exported, to compare the inputs of its BN layers as well.
        alpha: Rate of false alarms.
        batch_size: Number of examples per batch of arrays, with `model`. If None, 32.
        steps: Number of batches to use, with `model`. If None, all are used.

    Returns:
        A `DriftReport`. Its `drifted` is the verdict.

    Raises:
        KerasBNError: If the version has no reference, if the data does not fit it, or if there are fewer than
            20 examples.
    """
    known = reference.read(path)
    names = [name.removeprefix("input ") for name in known if name.startswith("input ")]
    if model is not None:
        batches = _logged(data, names) if isinstance(data, (str, os.PathLike)) else data
        sample = reference.of_model(model, names, batches, known, batch_size=batch_size, steps=steps)
        sample = _paired(sample, known)
    else:
        sample = {}
        for batch in _named(data, names):
            reference.of_inputs(batch, known, sample)
    if not known.keys() & sample.keys():
        raise KerasBNError("The data has no example of any tensor in the reference.")
    return compare(known, sample, alpha)


def _logged(path: str | os.PathLike[str], names: list[str]) -> Iterator[tuple[Any]]:
    """The requests of a log as batches of a model's inputs."""
    from keras_bn.saving import request_log

    for request in request_log.read(path):
        if missing := set(names) - request.keys():
            raise KerasBNError(
                f"{path}: a request has no input {min(missing)!r}; it has {', '.join(request)}."
            )
        values = [request[name] for name in names]
        yield (values[0] if len(values) == 1 else values,)


def _paired(sample: reference.Statistics, known: reference.Statistics) -> reference.Statistics:
    """The sample under the names of the reference.

    A layer of one's own may name the layers inside it anew in every copy, so BN layers whose paths differ are
    paired by position.
    """
    ours, theirs = ([name for name in each if not name.startswith("input ")] for each in (sample, known))
    if set(ours) == set(theirs):
        return sample
    new = dict(zip(ours, theirs, strict=False))
    if len(ours) != len(theirs) or any(
        len(sample[name].center) != len(known[other].center) for name, other in new.items()
    ):
        raise KerasBNError(
            f"model has the BN layers {', '.join(ours)}, but the reference has {', '.join(theirs)}; give the "
            "model that was exported."
        )
    return {new.get(name, name): each for name, each in sample.items()}


def _named(data: Any, names: list[str]) -> Iterator[Mapping[str, Any]]:
    """Batches by input name."""
    if isinstance(data, (str, os.PathLike)):
        from keras_bn.saving import request_log

        yield from request_log.read(data)
    elif isinstance(data, Mapping):
        yield data
    elif hasattr(data, "shape"):
        if len(names) != 1:
            raise KerasBNError(f"The model has the inputs {', '.join(names)}; give a dict of arrays by name.")
        yield {names[0]: data}
    elif isinstance(data, Iterable):
        for batch in data:
            yield from _named(batch, names)
    else:
        raise KerasBNError(f"data is a {type(data).__name__}; give arrays, or the file of a request log.")
