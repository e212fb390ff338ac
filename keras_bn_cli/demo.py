"""The main job on handwritten digits: train, retrofit, fine-tune, export, serve, query one image at a time.

Every figure the demo prints is asserted before the demo ends; the first that fails stops it with the reason.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

import keras_bn
from keras_bn.errors import CheckFailedError, KerasBNError

MODEL_NAME = "digits"
TRAIN_EPOCHS = 30
FINE_TUNE_EPOCHS = 5
BATCH_SIZE = 64
# Kernels may sum in another order for another batch size: probabilities agree to some ulp of 1 (6e-8 each).
ROUNDING = 1e-6
# Folding rounds every weight once, and the difference passes through the layers behind it.
FOLDING = 1e-5

Record = Callable[[str, str, str, bool], None]


class Digits(NamedTuple):
    """Handwritten digits, images `(n, 8, 8, 1)` float32 in [0, 1] and labels `(n,)` int64."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits() -> Digits:
    """Scikit-learn's 1797 scans of ten digits, a quarter of each class held out for the test."""
    try:
        from sklearn.datasets import load_digits as read
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise KerasBNError(
            "The demo's digits come with scikit-learn, which is not installed: pip install 'keras-bn[demo]'."
        ) from error
    scans = read()
    images = (scans.images / 16.0).astype("float32")[..., np.newaxis]
    train_x, test_x, train_y, test_y = train_test_split(
        images, scans.target, test_size=0.25, stratify=scans.target, random_state=0
    )
    return Digits(train_x, train_y, test_x, test_y)


def vgg_style_network() -> keras.Model:
    """A small VGG for 8x8 images: conv-conv-pool blocks and a dense head, each ReLU fused into its layer."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="block1_conv1"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="block1_conv2"),
            layers.MaxPooling2D(name="block1_pool"),
            layers.Conv2D(64, 3, padding="same", activation="relu", name="block2_conv1"),
            layers.Conv2D(64, 3, padding="same", activation="relu", name="block2_conv2"),
            layers.MaxPooling2D(name="block2_pool"),
            layers.Flatten(name="flatten"),
            layers.Dense(128, activation="relu", name="fc1"),
            layers.Dense(10, activation="softmax", name="predictions"),
        ],
        name="vgg_digits",
    )


def run(output: Path) -> None:
    """Run the seven steps, leave the exported model under `output`, print the table.

    Raises `CheckFailedError` with the reason when a figure is not what it must be.
    """
    table: list[tuple[str, str, str]] = []

    def record(what: str, figure: str, demand: str, holds: bool) -> None:
        table.append((what, figure, demand))
        click.echo(f"    {what}: {figure}")
        if not holds:
            raise CheckFailedError(f"The demo failed: {what} is {figure}, but must be {demand}.")

    keras.utils.set_random_seed(1)
    digits = load_digits()

    _headline(1, "train a VGG-style network without batch normalization")
    original = vgg_style_network()
    _fit(original, digits, TRAIN_EPOCHS, learning_rate=2e-3)
    accuracy = _accuracy(original, digits)
    record("test accuracy, trained without BN", f"{accuracy:.2%}", "over 97%", accuracy > 0.97)

    _headline(2, "retrofit: BN after every conv and dense layer but the output, outputs unchanged")
    retrofitted = keras_bn.retrofit(original, digits.train_images).model
    before, after = (_predict(model, digits.test_images) for model in (original, retrofitted))
    change = float(np.abs(after - before).max())
    record("largest change of a probability by the retrofit", f"{change:.2g}", "below 1e-6", change < 1e-6)
    agreement = float((after.argmax(-1) == before.argmax(-1)).mean())
    record("predicted classes that agree", f"{agreement:.0%}", "100%", agreement == 1.0)

    _headline(3, f"fine-tune both for {FINE_TUNE_EPOCHS} epochs")
    for name, model in (("original", original), ("retrofitted", retrofitted)):
        _fit(model, digits, FINE_TUNE_EPOCHS, learning_rate=5e-4)
        accuracy = _accuracy(model, digits)
        record(f"test accuracy, {name} and fine-tuned", f"{accuracy:.2%}", "over 97%", accuracy > 0.97)

    _headline(4, "export as a versioned SavedModel, BN folded, checked to run in inference mode")
    version_folder = keras_bn.export(retrofitted, output / MODEL_NAME, warmup=digits.test_images[:1])
    click.echo(f"    {version_folder}")

    _headline(5, "serve it and ask for one image at a time")
    alone, crowd = _serve_and_query(version_folder.parent, digits.test_images, record)

    _headline(6, "inference mode: an answer does not depend on its batch mates")
    _compare_answers(alone, crowd, version_folder, retrofitted, digits.test_images, record)

    _headline(7, "the server is stopped; the model stays")
    _print_table(table)
    _print_next_steps(version_folder, digits.test_images[0], int(digits.test_labels[0]))


def _headline(step: int, text: str) -> None:
    click.echo(f"\n[{step}/7] {text}")


def _fit(model: keras.Model, digits: Digits, epochs: int, learning_rate: float) -> None:
    """Train with Adam, its learning rate falling to zero along a cosine; a bar counts the epochs."""
    steps = epochs * math.ceil(len(digits.train_images) / BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    with tqdm(total=epochs, desc=f"    {model.name}", unit="epoch") as bar:

        def show(epoch: int, logs: dict[str, float]) -> None:
            bar.set_postfix(loss=logs["loss"], accuracy=logs["accuracy"])
            bar.update()

        model.fit(
            digits.train_images,
            digits.train_labels,
            batch_size=BATCH_SIZE,
            epochs=epochs,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=show)],
        )


def _predict(model: keras.Model, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
    return model.predict(images, batch_size=batch_size, verbose=0)


def _accuracy(model: keras.Model, digits: Digits) -> float:
    return float((_predict(model, digits.test_images).argmax(-1) == digits.test_labels).mean())


def _serve_and_query(
    base_path: Path, images: np.ndarray, record: Record
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The local server's answers by transport, to each image alone and in batches; then it is stopped."""
    from keras_bn_serving.client import Client
    from keras_bn_serving.local_server import launch

    alone: dict[str, np.ndarray] = {}
    crowd: dict[str, np.ndarray] = {}
    with launch(model_base_path=base_path.resolve(), model_name=MODEL_NAME) as server:
        addresses = {
            "REST": f"http://127.0.0.1:{server.rest_port}",
            "gRPC": f"grpc://127.0.0.1:{server.port}",
        }
        for transport, address in addresses.items():
            with Client(address, model=MODEL_NAME) as client:
                client.wait_until_ready(timeout=60)
                client.predict(images[:1])  # fetches the metadata and opens the connection
                answers, seconds = [], []
                for image in tqdm(images, desc=f"    {transport}", unit="image"):
                    start = time.perf_counter()
                    answers.append(np.asarray(client.predict(image[np.newaxis])))
                    seconds.append(time.perf_counter() - start)
                alone[transport] = np.concatenate(answers)
                crowd[transport] = np.concatenate(
                    [np.asarray(client.predict(batch)) for batch in _batches(images)]
                )
            p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
            what = f"{transport}, {len(images)} requests of one image"
            record(what, f"p50 {p50:.2f} ms, p99 {p99:.2f} ms", "answered", len(answers) == len(images))
    return alone, crowd


def _compare_answers(
    alone: dict[str, np.ndarray],
    crowd: dict[str, np.ndarray],
    version_folder: Path,
    model: keras.Model,
    images: np.ndarray,
    record: Record,
) -> None:
    """Hold the served answers to each other, to the SavedModel in process, and to the Keras model."""

    def same(what: str, one: np.ndarray, other: np.ndarray, tolerance: float) -> None:
        difference = float(np.abs(one - other).max())
        record(what, f"{difference:.2g}", f"at most {tolerance:g}", difference <= tolerance)

    exported = tf.saved_model.load(str(version_folder)).signatures["serving_default"]
    in_process = np.concatenate(
        [next(iter(exported(tf.constant(image[np.newaxis])).values())) for image in images]
    )
    in_keras = _predict(model, images)
    for transport, answers in alone.items():
        same(f"{transport}, one image: served against in process", answers, in_process, ROUNDING)
        same(f"{transport}, one image against the same in a batch of 64", answers, crowd[transport], ROUNDING)
        same(f"{transport}, one image against Keras, BN not folded", answers, in_keras, FOLDING)
    difference = _training_mode_difference(model, images[:BATCH_SIZE])
    record(
        "training mode: in a batch of 2 against a batch of 64",
        f"{difference:.2g}",
        "over 0.01",
        difference > 0.01,
    )


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]


def _training_mode_difference(model: keras.Model, images: np.ndarray) -> float:
    """The difference between the answers to an image in two batches that are normalized by their own moments.

    Pairs against the whole batch: a batch of one leaves one value per channel in the dense layers, of which
    there is no variance, and the layer refuses it.
    """
    weights = model.get_weights()  # training mode moves the moving statistics: they are put back
    pairs = [np.asarray(model(images[i : i + 2], training=True)) for i in range(0, len(images), 2)]
    together = np.asarray(model(images, training=True))
    model.set_weights(weights)
    return float(np.abs(np.concatenate(pairs) - together).max())


def _print_table(table: list[tuple[str, str, str]]) -> None:
    table = [("measured", "figure", "must be"), *table]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    click.echo()
    for row in table:
        click.echo("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)))


def _print_next_steps(version_folder: Path, image: np.ndarray, label: int) -> None:
    request = version_folder.parent.parent / "request.json"
    request.write_text(json.dumps({"instances": [image.tolist()]}))
    click.echo(
        f"""
The exported model is in {version_folder}. Serve it again (Ctrl-C stops it):

    {sys.argv[0]} serve {version_folder.parent}

and, from another terminal, send it a scanned {label} (the answer's largest probability is at index {label}):

    curl -d @{request} http://127.0.0.1:8501/v1/models/{MODEL_NAME}:predict
"""
    )
