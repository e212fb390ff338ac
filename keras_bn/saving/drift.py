"""Comparing data with the reference that travels with an export."""

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
    """Compare data with the reference that travels with an export, as for real requests.

    The inputs of the model are compared, and with `model` the inputs of its BN layers too. Each example is
    described by four numbers per tensor, and these are compared as `compare` says.

    Note that `alpha` bounds the rate of false alarms for independent examples. Consecutive frames of a video
    are not independent; take one of each scene.

    Args:
        path: A version that was exported with `reference=`, or the folder of the model's versions, of which
            the highest is taken.
        data: The sample: an array, a dict of arrays by input name, an iterable of either, or the file of a
            log of TF Serving's requests. With `model`, whatever `Model.predict` takes.
        model: The Keras model that was exported, for comparing the inputs of its BN layers.
        alpha: The false-alarm rate.
        batch_size: With `model`, the number of examples per batch of arrays; 32 if None.
        steps: With `model`, the number of batches to use; all if None.

    Returns:
        The report; its `drifted` is the verdict.

    Raises:
        KerasBNError: The version has no reference, the data does not fit it, or there are fewer than 20
            examples.
    """
    known = reference.read(path)
    names = [name.removeprefix("input ") for name in known if name.startswith("input ")]
    if model is not None:
        sample = reference.of_model(model, names, data, known, batch_size=batch_size, steps=steps)
    else:
        sample = {}
        for batch in _named(data, names):
            reference.of_inputs(batch, known, sample)
    if not known.keys() & sample.keys():
        raise KerasBNError("The data has no example of any tensor in the reference.")
    return compare(known, sample, alpha)


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
