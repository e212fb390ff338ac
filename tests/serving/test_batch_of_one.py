"""A retrofitted VGG served to requests of one image: the answer is the one that the image gets in any batch.

What an image is answered depends on the size of the batch that the kernels see, in its last bits: oneDNN and
Eigen block their sums by it. So wherever an image is computed alone the answers are the same bits, over REST,
gRPC and in process, one after the other and at once; so they are where the server fills every batch up to one
size. Between different sizes they agree to the rounding of float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import keras_bn
from keras_bn.saving.session import servable
from keras_bn_cli.program import program
from keras_bn_serving.client import Client
from tests.serving.golden.process import Server

COUNT = 24
# Of the largest output: sums of up to 576 float32 products in another order, in 16 layers. A matrix product
# of one row has a kernel of its own, whose sums err by 4e-7. 1e-6 was seen.
ROUNDING = 4e-6
BATCHING = "max_batch_size {{ value: 8 }} batch_timeout_micros {{ value: 20000 }} {}"
SERVERS = {
    "alone": None,
    "batched": BATCHING.format(""),
    "filled": BATCHING.format("allowed_batch_sizes: 8"),
}


def thin(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A layer of VGG16 with an eighth of its channels, and weights that keep the scale of their input."""
    config = layer.get_config()
    for size in {"filters", "units"} & set(config):
        config[size] = max(config[size] // 8, 10)
        config |= {"kernel_initializer": "he_normal", "bias_initializer": "random_normal"}
    return type(layer).from_config(config)


@dataclass(frozen=True)
class Vgg:
    """The retrofitted model, its version on disk, images, and the scores of each computed alone."""

    model: keras.Model
    path: Path
    images: np.ndarray
    alone: np.ndarray


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Vgg:
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(COUNT, 32, 32, 3)).astype(np.float32)
    wide = keras.applications.VGG16(
        weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
    )
    donor = keras.models.clone_model(wide, clone_function=thin)
    model = keras_bn.retrofit(donor, images, progress=False).model
    norms = [layer for layer in model.layers if isinstance(layer, keras_bn.BatchNormalization)]
    assert len(norms) == 13 + 2, "after every convolution and the two hidden dense layers"
    path = keras_bn.export(model, tmp_path_factory.mktemp("vgg"), fold=False, examples=images[:4])
    with servable(path, "serving_default") as served:
        (name,) = served.inputs
        alone = np.concatenate([served.run({name: image[None]})["predictions"] for image in images])
    assert np.ptp(alone, axis=0).max() > 0.1, "images that are told apart"
    return Vgg(model, path, images, alone)


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, vgg: Vgg, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    flags = ["--model_name=vgg", f"--model_base_path={vgg.path.parent}"]
    if SERVERS[request.param]:
        (folder / "batching.config").write_text(SERVERS[request.param])
        flags += ["--enable_batching", f"--batching_parameters_file={folder / 'batching.config'}"]
    with Server(flags, folder / "server") as running:
        assert running.wait_for_ports(60), running.stderr.read_text()
        running.name = request.param
        yield running


@pytest.fixture(scope="module", params=["http", "grpc"])
def predict(request: pytest.FixtureRequest, server: Server) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    port = server.rest_port if request.param == "http" else server.port
    with Client(f"{request.param}://localhost:{port}", model="vgg", timeout=60) as client:
        yield client.predict


def one_by_one(predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    return np.concatenate([predict(image[None]) for image in images])


def close(answers: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(answers, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


def test_one_after_the_other(vgg: Vgg, server: Server, predict: Callable) -> None:
    answers = one_by_one(predict, vgg.images)
    if server.name == "filled":
        close(answers, vgg.alone)
    else:
        np.testing.assert_array_equal(answers, vgg.alone)


def test_many_clients_at_once(vgg: Vgg, server: Server, predict: Callable) -> None:
    with ThreadPoolExecutor(8) as clients:
        answers = np.concatenate(list(clients.map(lambda image: predict(image[None]), vgg.images)))
    if server.name == "alone":
        np.testing.assert_array_equal(answers, vgg.alone)
    elif server.name == "filled":
        np.testing.assert_array_equal(answers, one_by_one(predict, vgg.images))
    close(answers, vgg.alone)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_inside_any_batch(vgg: Vgg, predict: Callable, size: int) -> None:
    order = np.random.default_rng(size).permutation(COUNT)
    for rows in order.reshape(-1, size):
        close(predict(vgg.images[rows]), vgg.alone[rows])


# The mistake: batch statistics in production


@pytest.fixture(scope="module")
def mistaken(vgg: Vgg) -> keras.Model:
    """The same model with `training=True` built in."""
    inputs = keras.Input((32, 32, 3), name="image")
    return keras.Model(inputs, vgg.model(inputs, training=True))


def test_in_training_mode_an_image_alone_has_lost_its_answer(
    vgg: Vgg, mistaken: keras.Model, tmp_path: Path
) -> None:
    """In a batch of one a dense layer's output is its own mean, so BN gives beta for every image."""
    path = tmp_path / "vgg" / "1"
    mistaken.export(path, verbose=False)
    arguments = ["--model_name=vgg", f"--model_base_path={path.parent}"]
    with Server(arguments, tmp_path / "server") as server:
        assert server.wait_for_ports(60), server.stderr.read_text()
        with Client(f"grpc://localhost:{server.port}", model="vgg", timeout=60) as client:
            alone, together = one_by_one(client.predict, vgg.images[:4]), client.predict(vgg.images[:4])
    assert np.ptp(alone, axis=0).max() < ROUNDING
    assert np.abs(alone - together).max() > 0.1

    caught = CliRunner().invoke(program, ["inspect", "--saved-model", str(path)])
    assert caught.exit_code == 1
    assert "depends on the other rows" in caught.output
    assert CliRunner().invoke(program, ["inspect", "--saved-model", str(vgg.path)]).exit_code == 0


def test_export_rights_it_with_a_warning(vgg: Vgg, mistaken: keras.Model, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'vgg16/block1_conv1_bn' is called with training=True"):
        folded = keras_bn.export(mistaken, tmp_path)
    for path in (folded, keras_bn.export(mistaken, tmp_path, fold=False)):
        with servable(path, "serving_default") as served:
            close(next(iter(served.run({"image": vgg.images}).values())), vgg.alone)


class InTraining(keras.layers.Layer):
    """The mistake where no argument can undo it."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.model = model

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.model(inputs, training=True)


def test_export_refuses_it_where_no_argument_shows_it(vgg: Vgg, tmp_path: Path) -> None:
    inputs = keras.Input((32, 32, 3), name="image")
    with pytest.raises(
        keras_bn.KerasBNError, match="changes block1_conv1_bn/moving_mean when it answers; call"
    ):
        keras_bn.export(keras.Model(inputs, InTraining(vgg.model)(inputs)), tmp_path / "models", fold=False)
    assert not (tmp_path / "models").exists()
