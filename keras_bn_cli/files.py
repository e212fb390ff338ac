"""Read models, and example data from arrays or folders of images."""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_bn.errors import KerasBNError


def import_modules(names: tuple[str, ...]) -> None:
    """Import modules whose custom layers register themselves on import."""
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise KerasBNError(
                f"--import {name}: {error}. It is looked for in the current folder and on PYTHONPATH."
            ) from error


def load_model(path: Path) -> keras.Model:
    """The model in a `.keras` or `.h5` file; `KerasBNError` says why a file is not one."""
    if path.is_dir():
        raise KerasBNError(
            f"{path} is a folder; this command takes a .keras file (model.save('model.keras'))."
        )
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise KerasBNError(
            f"{path} could not be loaded: it is corrupt, not the zip archive that a .keras file is; save or "
            "copy it anew."
        )
    try:
        return keras.models.load_model(path)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise KerasBNError(
            f"{path} could not be loaded: it is corrupt ({error}); save or copy it anew."
        ) from error
    except (TypeError, ValueError, OSError, KeyError) as error:
        if unregistered := re.search(r"(?:locate class|Unknown layer:) '([^']+)'", str(error)):
            raise KerasBNError(
                f"{path} could not be loaded: its class {unregistered[1]!r} is not registered; name the "
                "module that registers it with --import."
            ) from error
        raise KerasBNError(
            f"{path} could not be loaded as a Keras model: {_reason(error)}; save or copy it anew, or name "
            "the module that registers its custom layers with --import."
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence of the innermost error: Keras appends whole configurations."""
    text = str(error).rpartition("Exception encountered: ")[2].strip()
    return text.partition("\n")[0].partition(". ")[0].rstrip(".")[:200] or type(error).__name__


def save_model(model: keras.Model, path: Path) -> None:
    """Write a `.keras` file, whole or not at all: it is made beside its place and renamed."""
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        model.save(unfinished)
        unfinished.replace(path)


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that could not be written, before any work is done for it."""
    if path.suffix != ".keras":
        raise KerasBNError(f"The output must be a .keras file, got {path}.")
    if path.exists() and not overwrite:
        raise KerasBNError(f"{path} exists; choose another output or add --overwrite.")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse a path at which no file could be written."""
    if not path.parent.is_dir():
        raise KerasBNError(f"The folder {path.parent} does not exist; create it or choose another output.")
    if path.is_dir():
        raise KerasBNError(f"{path} is a folder; choose a file as the output.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise KerasBNError(f"{path} cannot be written: permission denied; choose another output.")


def read_data(path: Path, model: keras.Model, preprocessing: str, batch_size: int) -> tuple[Any, int | None]:
    """Examples for `model` from a `.npy` or `.npz` file or a folder of images.

    An `.npz` file with one array gives that array, with several a dict by input name. Images (JPEG, PNG, BMP,
    GIF, at any depth below the folder) are streamed, resized to the model and scaled as `preprocessing`
    says: `unit` to [0, 1]; `caffe`, `tf`, `torch` as `keras.applications` does; `none` leaves [0, 255].

    Returns:
        The examples, and the size of the batches to cut them into; None for images, which come in batches.
    """
    if path.is_dir():
        return _read_images(path, model, preprocessing, batch_size), None
    return read_arrays(path), batch_size


def read_arrays(path: Path) -> Any:
    """The array of a `.npy` file, or of an `.npz` file with one; the dict of arrays of one with several."""
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy takes any file it does not know for a pickle, and advises to load it unsafely.
        reason = "it is no NumPy file, or holds Python objects" if "pickle" in str(error) else error
        raise KerasBNError(
            f"{path} could not be read as data: {reason}. Give a .npy or .npz file, or a folder of images."
        ) from error
    if isinstance(arrays, np.ndarray):
        return arrays
    if not arrays:
        raise KerasBNError(f"{path} holds no arrays; save one with numpy.savez({path.name!r}, images).")
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _read_images(folder: Path, model: keras.Model, preprocessing: str, batch_size: int) -> Any:
    shape = model.input_shape
    if not (isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:]):
        raise KerasBNError(
            f"A folder of images needs a model with one input (height, width, channels), not {shape}; "
            "give the data as a .npy or .npz file."
        )
    channels_first = shape[1] in (1, 3) and shape[3] not in (1, 3)
    height, width, channels = (shape[2], shape[3], shape[1]) if channels_first else shape[1:]
    color_mode = {1: "grayscale", 3: "rgb", 4: "rgba"}.get(channels)
    if color_mode is None:
        raise KerasBNError(f"Images have 1, 3 or 4 channels, but the model takes {channels}.")
    try:
        images = keras.utils.image_dataset_from_directory(
            folder,
            labels=None,
            color_mode=color_mode,
            image_size=(height, width),
            batch_size=batch_size,
            shuffle=False,
            data_format="channels_first" if channels_first else "channels_last",
            verbose=False,
        )
    except ValueError as error:
        raise KerasBNError(f"No images found in {folder}: {error}") from error
    files = images.file_paths
    if preprocessing == "unit":
        images = images.map(lambda batch: batch / 255.0)
    elif preprocessing != "none":
        preprocess = keras.applications.imagenet_utils.preprocess_input
        data_format = "channels_first" if channels_first else "channels_last"
        images = images.map(lambda batch: preprocess(batch, data_format=data_format, mode=preprocessing))
    return _Images(images, files, channels)


@dataclass(frozen=True)
class _Images:
    """Batches of images; an error names the file that cannot be decoded."""

    batches: tf.data.Dataset
    files: list[str]
    channels: int

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tf.Tensor]:
        try:
            yield from self.batches
        except tf.errors.OpError:
            for file in self.files:  # which one it was, TensorFlow does not tell
                self._check(file)
            raise

    def _check(self, file: str) -> None:
        try:
            tf.io.decode_image(tf.io.read_file(file), self.channels, expand_animations=False)
        except tf.errors.OpError as error:
            raise KerasBNError(
                f"{file} could not be decoded as an image of {self.channels} channels; repair it or take it "
                "out of the folder."
            ) from error
