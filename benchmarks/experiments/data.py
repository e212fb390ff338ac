"""The data sets: handwritten digits, in two sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from keras_bn.errors import KerasBNError


class Data(NamedTuple):
    """Images `(n, side, side, 1)` float32 in [0, 1] and labels `(n,)` int64 in 0..9."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(name: str) -> Data:
    """The data set called `name`; KerasBNError if it is unknown or cannot be had here."""
    if name not in DATA_SETS:
        raise KerasBNError(f"There is no data set {name!r}; the known ones are: {', '.join(DATA_SETS)}.")
    return DATA_SETS[name]()


def _digits() -> Data:
    """Scikit-learn's 1797 scans of 8x8 pixels; 500, the same share of every digit, are for the test."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise KerasBNError(
            "The digits come with scikit-learn, which is not installed: pip install 'keras-bn[experiments]'."
        ) from error
    scans = load_digits()
    images = (scans.images / 16.0).astype("float32")[..., np.newaxis]
    x_train, x_test, y_train, y_test = train_test_split(
        images, scans.target.astype("int64"), test_size=500, stratify=scans.target, random_state=0
    )
    return Data(x_train, y_train, x_test, y_test)


def _mnist() -> Data:
    """The 60 000 + 10 000 scans of 28x28 pixels, downloaded by Keras."""
    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception when it cannot download
        raise KerasBNError(
            "MNIST could not be downloaded; put mnist.npz into ~/.keras/datasets, or use --data digits."
        ) from error
    x_train, x_test = (x[..., np.newaxis].astype("float32") / 255.0 for x in (x_train, x_test))
    return Data(x_train, y_train.astype("int64"), x_test, y_test.astype("int64"))


DATA_SETS: dict[str, Callable[[], Data]] = {"digits": _digits, "mnist": _mnist}
