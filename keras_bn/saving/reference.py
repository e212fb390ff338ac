"""The statistics of a model's data that are stored in an export, to compare later data with them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_bn.data import batches
from keras_bn.errors import KerasBNError
from keras_bn.saving.record import EXTRA
from keras_bn.statistics.examples import ExampleStatistics
from keras_bn.surgery._checks import check_model
from keras_bn.surgery._cloning import layers_in
from keras_bn.surgery._segment import Sight
from keras_bn.surgery.normalizations import is_batch_normalization
from keras_bn.surgery.observe import Observer
from keras_bn.surgery.population_statistics import DAMAGED

FILE = "keras_bn_reference.npz"

Statistics = dict[str, ExampleStatistics]


def of_inputs(batch: Mapping[str, NDArray[Any]], known: Statistics | None, into: Statistics) -> None:
    """Add a batch of a model's numeric inputs, by name, to `into`.

    Args:
        known: The reference that gives center and scale, or None to take them from this batch.
    """
    for name, value in batch.items():
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or not len(array):
            continue
        array = array.reshape(len(array), -1) if array.ndim == 1 else array
        key = f"input {name}"
        if known is not None and key not in known:
            raise KerasBNError(f"The reference has no input {name!r}; it has {', '.join(known)}.")
        if key not in into:
            into[key] = _like(known[key]) if known else ExampleStatistics.around(array)
        if array.shape[-1] != len(into[key].center):
            raise KerasBNError(
                f"Input {name!r} has {array.shape[-1]} channels on its last axis, but the reference has "
                f"{len(into[key].center)}."
            )
        if not np.isfinite(array).all():
            raise KerasBNError(f"Input {name!r} has values that are not finite; leave those examples out.")
        into[key].update(array)


def of_model(
    model: keras.Model,
    names: Sequence[str],
    data: Any,
    known: Statistics | None = None,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
) -> Statistics:
    """The statistics of a model's inputs and of the inputs of its BN layers over data.

    Args:
        model: A built model.
        names: The names of its inputs, in order.
        data: Data in any form that `Model.predict` accepts.
        known: The reference that gives center and scale, or None.
    """
    check_model(model)
    found = {id(layer): (path, layer) for path, layer in layers_in(model) if is_batch_normalization(layer)}
    observer: Observer | None = None
    result: Statistics = {}
    for batch in batches(model, data, batch_size, steps):
        leaves = [np.asarray(leaf) for leaf in keras.tree.flatten(batch)]
        of_inputs(dict(zip(names, leaves, strict=True)), known, result)
        if not found:
            continue
        if observer is None:
            built = [layer for _, layer in found.values() if layer.built]
            observer = Observer(model, built, batch)
        for sight in observer.sights_of(batch):
            path, _ = found[id(sight.layer)]
            _add(sight, path, len(leaves[0]), result)
    return result


def write(folder: Path, statistics: Statistics) -> dict[str, Any]:
    """Write the statistics into a version, and return their entry for the record."""
    arrays = {
        f"{i}.{name}": array
        for i, each in enumerate(statistics.values())
        for name, array in each.to_arrays().items()
    }
    names = np.array(list(statistics))
    np.savez_compressed(folder / EXTRA / FILE, allow_pickle=False, names=names, **arrays)
    return {
        "file": FILE,
        "tensors": {
            name: {"examples": each.examples, "values_per_channel": each.moments.count}
            for name, each in statistics.items()
        },
    }


def read(path: str | os.PathLike[str]) -> Statistics:
    """The statistics of a version, or of the highest version in a base path.

    Raises:
        KerasBNError: If there is no version, if it was exported without a reference, or if the file is
            damaged.
    """
    folder = _version(Path(path))
    file = folder / EXTRA / FILE
    if not file.exists():
        raise KerasBNError(
            f"{folder} has no statistics to compare with; export the model with reference=data, or "
            "keras-bn export --reference DATA."
        )
    try:
        with np.load(file, allow_pickle=False) as loaded:
            return _decoded(dict(loaded))
    except DAMAGED as error:
        raise KerasBNError(f"{file} is damaged; export the model with reference=data again.") from error


def _decoded(arrays: Mapping[str, NDArray[Any]]) -> Statistics:
    result = {}
    for i, name in enumerate(arrays["names"]):
        prefix = f"{i}."
        result[str(name)] = ExampleStatistics.from_arrays(
            {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        )
    return result


def _version(path: Path) -> Path:
    if (path / "saved_model.pb").exists():
        return path
    versions = [each for each in path.iterdir() if each.name.isdecimal()] if path.is_dir() else []
    if not versions:
        raise KerasBNError(f"{path} is neither an exported version nor a folder of versions.")
    return max(versions, key=lambda each: int(each.name))


def _like(known: ExampleStatistics) -> ExampleStatistics:
    return ExampleStatistics(known.center, known.scale)


def _add(sight: Sight, path: str, examples: int, into: Statistics) -> None:
    """Add the statistics of a batch. Rows that do not belong to whole examples are left out."""
    count, mean, variance = (np.asarray(each, np.float64) for each in sight.rows)
    rows, channels = mean.shape
    if not examples or rows % examples:
        return
    layer: Any = sight.layer
    if path not in into:
        center = np.asarray(keras.ops.convert_to_numpy(layer.moving_mean), np.float64)
        spread = np.asarray(keras.ops.convert_to_numpy(layer.moving_variance), np.float64) + layer.epsilon
        if center.shape != (channels,):  # statistics for each step of a sequence
            center, spread = center.mean(0), spread.mean(0)
        into[path] = ExampleStatistics(center, np.sqrt(spread))
    shape = (examples, rows // examples, channels)
    into[path].update_rows(
        np.broadcast_to(count, (rows, 1)).reshape(shape[:2]),
        mean.reshape(shape),
        np.broadcast_to(variance, mean.shape).reshape(shape),
    )
