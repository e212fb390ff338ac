"""Features of an Example, from Python values: the same typing over both transports."""

from typing import Any

import numpy as np

from keras_bn_serving.client.arguments import check_name
from keras_bn_serving.client.inputs import to_strings
from keras_bn_serving.wire.errors import InvalidArgumentError


def feature_values(name: str, value: Any) -> np.ndarray:
    """Return a feature as a flat array of int64, float32 or bytes objects.

    TF Serving decides by how a number is written: 2 is an int64 feature and 2.0 a float one, booleans are
    int64, and str, bytes and pathlib.Path (its contents) are bytes. One feature holds one kind; integers
    among floats are floats.
    """
    check_name("the feature", name)
    try:
        array = np.asarray(value, object if isinstance(value, bytes | str) else None)
    except Exception as error:  # whatever a value may raise
        raise InvalidArgumentError(f"feature {name!r} is no list of values: {error}") from error
    if array.dtype.kind in "iub":
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise InvalidArgumentError(f"feature {name!r} holds {array.max()}, which is no 64-bit integer")
        return array.reshape(-1).astype(np.int64)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = array.reshape(-1).astype(np.float32)
        return values
    try:
        return to_strings(value).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"feature {name!r} should hold int, float, str or bytes, one kind of them: {error}"
        ) from error
