"""What the command line reads: models, and example data from arrays or folders of images."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bn.errors import KerasBNError

PREPROCESSINGS = ("none", "unit", "caffe", "tf", "torch")


def import_modules(names: tuple[str, ...]) -> None:
    """Import modules whose custom layers register themselves on import."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise KerasBNError(f"--import {name}: {error}. Is it on PYTHONPATH?") from error


def load_model(path: Path) -> keras.Model:
    """The model in a `.keras` or `.h5` file; `KerasBNError` says why a file is not one."""
    if path.is_dir():
        raise KerasBNError(
            f"{path} is a folder; this command takes a .keras file (model.save('model.keras'))."
        )
    try:
        return keras.models.load_model(path)
    except (TypeError, ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise KerasBNError(
            f"{path} could not be loaded as a Keras model: {reason} "
            "If it holds custom layers, name the module that registers them with --import."
        ) from error


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that could not be written, before any work is done for it."""
    if path.suffix != ".keras":
        raise KerasBNError(f"The output must be a .keras file, got {path}.")
    if path.exists() and not overwrite:
        raise KerasBNError(f"{path} exists; choose another output or add --overwrite.")
    if not path.parent.is_dir():
        raise KerasBNError(f"The folder {path.parent} does not exist; create it or choose another output.")


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
    except (OSError, ValueError) as error:
        raise KerasBNError(
            f"{path} could not be read as data: {error}. Give a .npy or .npz file, or a folder of images."
        ) from error
    if isinstance(loaded, np.ndarray):
        return loaded
    arrays = dict(loaded)
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
    if preprocessing == "none":
        return images
    if preprocessing == "unit":
        return images.map(lambda batch: batch / 255.0)
    preprocess = keras.applications.imagenet_utils.preprocess_input
    data_format = "channels_first" if channels_first else "channels_last"
    return images.map(lambda batch: preprocess(batch, data_format=data_format, mode=preprocessing))
