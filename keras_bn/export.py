"""Export of a Keras model as a version that TensorFlow Serving can load."""

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bn.saving import saved_model, warm_up
from keras_bn.saving.examples import Tensors, generated, given
from keras_bn.saving.proof import verify_inference_mode
from keras_bn.saving.signatures import Signature, predict_signature
from keras_bn.saving.versions import check_version, publish


def export(
    model: keras.Model,
    base_path: str | os.PathLike[str],
    version: int | None = None,
    fold: bool = True,
    *,
    examples: Any = None,
    warmup: Any = None,
) -> Path:
    """Write `model` as `base_path/<version>/`, proven to answer in inference mode, and return that folder.

    The version holds a SavedModel whose `serving_default` signature runs the inference path alone, its inputs
    and outputs named as the model's own (by the keys where it takes or returns a dict, else by layer), with a
    dynamic batch dimension. `keras.Model.export` writes every weight twice, as variables; here the weights
    are constants of the graph, once, which is half the size and lets the runtime fold them and prepare them
    for its kernels. Only weights of nearly 2 GB, the limit of a graph, stay variables.

    The version is built in a hidden folder of `base_path`, loaded again as TensorFlow Serving loads it,
    proven by `verify_inference_mode`, and renamed in one step. A server that polls `base_path` sees a whole
    version or none.

    Args:
        model: a built Functional or Sequential model; it is left as it is.
        base_path: the local folder of the model's versions, made if it is missing.
        version: an integer from 0 up that is not taken, or None for one more than the highest there is.
        fold: absorb batch normalization into the layers before it (`keras_bn.fold`) where that is exact to
            rounding.
        examples: two or more inputs for the proof, as an array or a dict of arrays by input name; made up
            when None, which fails for models that take strings or are particular about their integers.
        warmup: inputs, in the form of `examples`, that the server is to run as one request before the version
            answers (`assets.extra/tf_serving_warmup_requests`); None for one example, the first of `examples`
            or zeros; False for no warm-up.

    Raises:
        KerasBNError: the model is not built, or is subclassed; the version is taken or no valid number;
            `base_path` is a file or cannot be written; or the proof failed. No version appears.

    >>> import keras, keras_bn, tempfile
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    >>> base_path = tempfile.mkdtemp()
    >>> keras_bn.export(model, base_path).name
    '1'
    >>> keras_bn.export(model, base_path).name
    '2'
    """
    base_path = Path(base_path)
    check_version(base_path, version)
    signature = predict_signature(_folded(model) if fold else model)
    first = _warm_up_batch(signature, examples, warmup)

    def write(folder: Path) -> None:
        saved_model.write(model, signature, folder)
        if first is not None:
            warm_up.write(folder, [(saved_model.SERVING_DEFAULT, first)])
        verify_inference_mode(folder, examples)

    return publish(base_path, version, write)


def _warm_up_batch(signature: Signature, examples: Any, warmup: Any) -> Tensors | None:
    if warmup is False:
        return None
    if warmup is not None:
        return given(signature.inputs, warmup)
    if examples is not None:
        return {name: values[:1] for name, values in given(signature.inputs, examples).items()}
    batch = next(generated(signature.inputs))
    return {name: np.zeros_like(values[:1]) for name, values in batch.items()}


def _folded(model: keras.Model) -> keras.Model:
    try:
        from keras_bn.surgery.fold import fold
    except ImportError:
        return model
    return fold(model).model
