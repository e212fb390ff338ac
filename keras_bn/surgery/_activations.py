"""The values at the boundary between two levels of a model, for every batch: in memory, then on disk."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_bn.errors import KerasBNError
from keras_bn.surgery._compiled import as_tensor, is_in_host_memory, size_of


class Activations:
    """Values of batches, by the number of the batch; a context that removes its files at the end.

    Args:
        memory_limit: bytes to hold in memory. What comes beyond goes to a temporary folder.
    """

    def __init__(self, memory_limit: float) -> None:
        self._limit, self._used = memory_limit, 0
        self._batches: dict[int, dict[int, list[Any]]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Activations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def __len__(self) -> int:
        return len(self._batches)

    def put(self, batch: int, values: Mapping[int, Iterable[Any]]) -> None:
        """Keep the values of a batch: by number, tensors that go together.

        None stays None, and what is no dense tensor stays as it is.

        Raises:
            KerasBNError: if the disk is full.
        """
        self._batches[batch] = {number: [self._stored(v) for v in group] for number, group in values.items()}

    def take(self, batch: int) -> dict[int, Any]:
        """The values of a batch, which are then forgotten."""
        stored = self._batches.pop(batch)
        return {number: tuple(self._loaded(v) for v in group) for number, group in stored.items()}

    def _stored(self, value: Any) -> Any:
        if value is None or not hasattr(value, "__array__"):
            return value
        size = math.prod(value.shape) * size_of(value.dtype)
        if self._used + size <= self._limit:
            self._used += size
            # Nothing is copied unless it is on an accelerator, whose memory is not ours to fill.
            return _Held(value if is_in_host_memory(value) else ops.convert_to_numpy(value), size)
        array = ops.convert_to_numpy(value)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="keras_bn_")
        file = tempfile.NamedTemporaryFile(dir=self._folder.name, delete=False)  # noqa: SIM115
        try:
            with file:
                _write(array, file)
        except OSError as error:
            raise KerasBNError(
                f"The activations between two levels of the model need more than {self._limit:g} bytes "
                f"(memory_limit=), and {self._folder.name} has no room for the rest: {error}. Use fewer "
                "examples (steps=), set TMPDIR to a larger disk, or use estimator='batch', which keeps none."
            ) from error
        return _File(Path(file.name), array.dtype, array.shape)

    def _loaded(self, value: Any) -> Any:
        if isinstance(value, _File):
            array = np.fromfile(value.path, value.dtype).reshape(value.shape)
            value.path.unlink()
            return as_tensor(array)
        if isinstance(value, _Held):
            self._used -= value.size
            return as_tensor(value.tensor)
        return value


def _write(array: np.ndarray, file: Any) -> None:
    np.ascontiguousarray(array).tofile(file)


class _Held(NamedTuple):
    tensor: Any
    size: int


class _File:
    def __init__(self, path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.shape = path, dtype, shape
