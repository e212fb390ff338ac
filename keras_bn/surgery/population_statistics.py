"""The statistics of a model's BN layers over some data, as a value: saved, loaded, merged, applied."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_bn._keras import flatten_layers
from keras_bn.errors import KerasBNError
from keras_bn.statistics.population import PopulationMoments

if TYPE_CHECKING:
    from keras_bn.surgery.report import SurgeryResult

_FORMAT = 1
# The errors of NumPy and zipfile for a .npz file that is damaged or of another kind.
DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
_KIND = "keras_bn population statistics"


@dataclass(frozen=True)
class PopulationStatistics:
    """Count, mean and variance of the inputs of BN layers over one or more shards of a data set.

    The sums behind them are exact, so shards can be merged in any order to the same float64 statistics.

    Attributes:
        moments: The moments by path of the layer, as in the report of `keras_bn.recalibrate`.
        estimator: `"batch"` or `"sequential"`.
        levels: The paths of the layers, level by level. With `"sequential"`, the inputs of a level depend on
            the statistics of the levels before it, so each level takes a pass over the data. With `"batch"`
            there is one level.
        level: The level that the shards are of, counted from 0. Statistics of the levels before it are part
            of the value.
        shards: The number of shards, and the indices of those that are in the value.
        fingerprint: A hash of the model's layers and weights, without the population statistics.
        paths: The paths of all BN layers of the model, in its order. They may differ between two copies of a
            model, if a custom layer names the layers inside it anew, so copies are paired by position.
    """

    moments: Mapping[str, PopulationMoments]
    estimator: str
    levels: tuple[tuple[str, ...], ...]
    level: int
    shards: tuple[int, frozenset[int]]
    fingerprint: str
    paths: tuple[str, ...]

    @property
    def missing_shards(self) -> tuple[int, ...]:
        """The indices of the shards that have not been merged in yet."""
        count, present = self.shards
        return tuple(i for i in range(count) if i not in present)

    @property
    def remaining_levels(self) -> int:
        """The number of levels that have no statistics yet."""
        return len(self.levels) - 1 - self.level

    def __str__(self) -> str:
        """The value in one line."""
        count, present = self.shards
        values = max((moments.count for moments in self.moments.values()), default=0)
        layers = f"{len(self.moments)} BN layer{'s' * (len(self.moments) != 1)}"
        return (
            f"{layers}, {self.estimator} estimator, level {self.level + 1} of {len(self.levels)}, "
            f"{len(present)} of {count} shards, up to {values} values per channel"
        )

    def merge(self, other: PopulationStatistics) -> PopulationStatistics:
        """The statistics of the shards of both, the same to the last bit in any order.

        Raises:
            KerasBNError: If the two belong to different models, weights, estimators or levels, or have a
                shard in common.
        """
        (count, present), (other_count, other_present) = self.shards, other.shards
        if count != other_count:
            raise KerasBNError(f"The data was cut into {count} shards and into {other_count}; use one cut.")
        if twice := present & other_present:
            raise KerasBNError(f"Shard {min(twice)} of {count} is in both; merge each shard once.")
        return replace(self.combine(other), shards=(count, present | other_present))

    def combine(self, other: PopulationStatistics) -> PopulationStatistics:
        """The statistics of the data of both. Unlike `merge`, it does not check the shards."""
        other = other.with_paths(self.paths)
        self.check_fits(other.estimator, other.levels, other.fingerprint)
        if self.level != other.level:
            raise KerasBNError(
                f"The statistics are of levels {self.level} and {other.level} (counted from 0); merge the "
                "shards of one level, and pass the result to recalibrate(statistics=...) for the next."
            )
        here = self.levels[self.level]
        for path in self.moments.keys() - set(here):
            if not _equal(self.moments[path], other.moments[path]):
                raise KerasBNError(
                    f"The statistics of {path!r}, of an earlier level, differ between the shards; pass the "
                    "same merged statistics to each shard."
                )
        merged = {path: _copy(moments) for path, moments in self.moments.items()}
        for path in here:
            merged[path].merge(other.moments[path])
        return replace(self, moments=merged)

    def with_paths(self, paths: tuple[str, ...]) -> PopulationStatistics:
        """The same statistics for a copy of the model, in which the BN layers have these paths."""
        if len(paths) != len(self.paths):
            raise KerasBNError(
                f"The statistics are of different models, one of {len(self.paths)} and one of {len(paths)} "
                "BN layers; use one model file for all."
            )
        new = dict(zip(self.paths, paths, strict=True))
        return replace(
            self,
            moments={new[path]: moments for path, moments in self.moments.items()},
            levels=tuple(tuple(new[path] for path in level) for level in self.levels),
            paths=paths,
        )

    def check_fits(self, estimator: str, levels: tuple[tuple[str, ...], ...], fingerprint: str) -> None:
        """Raise a KerasBNError unless the statistics are of this estimator, layers and weights."""
        if (self.estimator, self.levels) != (estimator, levels):
            raise KerasBNError(
                "The statistics are of different models or layers, or of different estimators; use the same "
                "model and the same arguments for all."
            )
        if self.fingerprint != fingerprint:
            raise KerasBNError(
                "The weights of the model differ from those that the statistics were computed with, or the "
                "options of its layers do; use one model file for all."
            )

    def apply(self, model: keras.Model, in_place: bool = False, prior: float = 0) -> SurgeryResult:
        """The same as `keras_bn.recalibrate(model, prior=prior, in_place=in_place, statistics=self)`."""
        from keras_bn.surgery.shards import apply

        return apply(model, self, in_place, prior)

    def check_complete(self) -> None:
        """Raise a KerasBNError unless every shard has been merged in."""
        if missing := self.missing_shards:
            listed = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise KerasBNError(
                f"Shards {listed} of {self.shards[0]} are missing (counted from 0); merge them first."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file, whole or not at all."""
        header = {
            "kind": _KIND,
            "format": _FORMAT,
            "estimator": self.estimator,
            "levels": self.levels,
            "level": self.level,
            "shards": [self.shards[0], sorted(self.shards[1])],
            "fingerprint": self.fingerprint,
            "paths": self.paths,
            "layers": list(self.moments),
        }
        arrays: dict[str, NDArray[Any]] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
        for i, moments in enumerate(self.moments.values()):
            for name, array in moments.to_arrays().items():
                arrays[f"{i}.{name}"] = array
        path = Path(path)
        if not path.parent.is_dir():
            raise KerasBNError(f"The folder {path.parent} does not exist; create it or choose another file.")
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            unfinished = Path(folder) / "statistics.npz"
            np.savez_compressed(unfinished, allow_pickle=False, **arrays)
            unfinished.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PopulationStatistics:
        """Read a file that `save` wrote.

        Raises:
            KerasBNError: If the file is missing, damaged, of another kind, or of another format.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            header = json.loads(arrays["header"].tobytes())
            if header["kind"] != _KIND:
                raise ValueError("another kind of file")
            version = header["format"]
            result = _decoded(header, arrays) if version == _FORMAT else None
        except FileNotFoundError as error:
            raise KerasBNError(f"{path} does not exist.") from error
        except DAMAGED as error:
            raise KerasBNError(f"{path} is not a file of population statistics, or is damaged.") from error
        if result is None:
            raise KerasBNError(
                f"{path} has format {version!r}, and this version of keras_bn reads format {_FORMAT} only; "
                "use the version that wrote it, or estimate the shard again."
            )
        return result


def _decoded(header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> PopulationStatistics:
    """The value that a file holds. Contents that do not fit together raise one of `DAMAGED`."""
    moments = {
        layer: PopulationMoments.from_arrays(
            {name: arrays[f"{i}.{name}"] for name in ("counts", "sum", "squares")}
        )
        for i, layer in enumerate(header["layers"])
    }
    count, present = header["shards"]
    return PopulationStatistics(
        moments,
        header["estimator"],
        tuple(map(tuple, header["levels"])),
        header["level"],
        (count, frozenset(present)),
        header["fingerprint"],
        tuple(header["paths"]),
    )


def merge(
    statistics: Iterable[PopulationStatistics | str | os.PathLike[str]],
) -> PopulationStatistics:
    """Merge the statistics of shards, given as values or as files.

    Args:
        statistics: Statistics from `keras_bn.recalibrate(..., shard=(i, n), save=file)`, in any order. A
            merged value can be merged again.

    Returns:
        The statistics of all shards together. The result is the same to the last bit in every order.

    Raises:
        KerasBNError: If there are no statistics; if a file cannot be read; or if they do not belong together,
            because of different models, weights, estimators or levels, or the same shard twice. The message
            names the file.
    """
    result: PopulationStatistics | None = None
    for each in statistics:
        value = each if isinstance(each, PopulationStatistics) else PopulationStatistics.load(each)
        try:
            result = value if result is None else result.merge(value)
        except KerasBNError as error:
            raise error if value is each else KerasBNError(f"{each}: {error}") from error
    if result is None:
        raise KerasBNError("There are no statistics to merge.")
    return result


def fingerprint(model: keras.Model, without: Iterable[Any]) -> str:
    """A hash of a model's layers and the values of its weights, except the variables in `without`."""
    left_out = {id(variable) for variable in without}
    digest = hashlib.blake2b(digest_size=16)
    for layer in flatten_layers(model):
        digest.update(f"{type(layer).__name__}{_options(layer)}".encode())
    for variable in model.weights:
        if id(variable) not in left_out:
            array = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _options(layer: keras.Layer) -> str:
    """The numbers, flags and names among the options of a layer that has no other inside it.

    Its own name is left out, since it differs where the model is built twice. So are objects, since they are
    described in one way before a model is saved and in another after it is loaded.
    """
    if len(flatten_layers(layer)) > 1 or isinstance(layer, keras.layers.InputLayer):
        return ""
    try:
        config = layer.get_config()
    except Exception:  # a layer of one's own may have no usable get_config
        return ""
    plain = {
        name: value
        for name, value in config.items()
        if name not in ("name", "trainable") and isinstance(value, (bool, int, float, str))
    }
    return json.dumps(plain, sort_keys=True)


def _copy(moments: PopulationMoments) -> PopulationMoments:
    result = PopulationMoments(moments.channels)
    result.merge(moments)
    return result


def _equal(one: PopulationMoments, other: PopulationMoments) -> bool:
    pairs = zip(one.to_arrays().values(), other.to_arrays().values(), strict=True)
    return all(np.array_equal(left, right) for left, right in pairs)
