"""Image files as requests, against Keras's own loading and preprocessing."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image

import keras_bn
from keras_bn.saving import saved_model
from keras_bn.saving.session import servable


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 16, 3), name="image")
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, layers.Dense(3, name="scores")(layers.Flatten()(x)))


def pixels(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def file(array, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(array.squeeze()).save(stream, kind, **options)
    return stream.getvalue()


def ask(path, *files):
    with servable(path, "serving_image") as served:
        assert list(served.inputs) == ["image_bytes"]
        (answer,) = served.run({"image_bytes": np.array(files, dtype=object)}).values()
    return answer


def halved(batch):
    return batch / 2


@pytest.mark.parametrize(
    "mode", ["raw", "caffe", "tf", "torch", halved], ids=["raw", "caffe", "tf", "torch", "function"]
)
@pytest.mark.parametrize("constants", [2**27, 0], ids=["constants", "variables"])
def test_preprocessing_is_that_of_keras(tmp_path, model, mode, constants, monkeypatch):
    monkeypatch.setattr(saved_model, "LARGEST_CONSTANTS", constants)
    path = keras_bn.export(model, tmp_path, image_bytes=mode)
    image = pixels(12, 16)
    if callable(mode):
        prepared = mode(image.astype(np.float32))
    elif mode == "raw":
        prepared = image.astype(np.float32)
    else:
        prepared = keras.applications.imagenet_utils.preprocess_input(image.astype(np.float32), mode=mode)
    expected = model.predict(prepared[np.newaxis], verbose=0)
    np.testing.assert_allclose(
        ask(path, file(image)), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )


def test_weights_are_shared_and_the_default_signature_stays(tmp_path, model):
    one = keras_bn.export(model, tmp_path, warmup=False)
    two = keras_bn.export(model, tmp_path, warmup=False, image_bytes="tf")
    graph = 10_000  # bytes of the nodes that decode
    assert (two / "saved_model.pb").stat().st_size < (one / "saved_model.pb").stat().st_size + graph
    image = pixels(12, 16).astype(np.float32)[np.newaxis]
    answers = [
        tf.saved_model.load(str(path)).signatures["serving_default"](tf.constant(image))["scores"]
        for path in (one, two)
    ]
    np.testing.assert_allclose(*answers, rtol=1e-6)


def test_formats_and_sizes_mix_in_a_batch(tmp_path, model):
    path = keras_bn.export(model, tmp_path, image_bytes="tf")
    flat = np.full(
        (30, 50, 3), (200, 100, 50), np.uint8
    )  # one colour, so that no codec or resizing changes it
    files = [file(flat), file(flat[:9, :9], "BMP"), file(flat, "JPEG", quality=100), file(flat, "GIF")]
    answers = ask(path, *files)
    assert answers.shape == (4, 3)
    # JPEG is off by up to a level of 255 after its change of colour space.
    np.testing.assert_allclose(answers, np.broadcast_to(answers[:1], (4, 3)), rtol=0.05, atol=0.05)
    np.testing.assert_allclose(ask(path, files[2])[0], answers[2], rtol=1e-5, atol=1e-6)


def test_resizing_is_that_of_pillow(tmp_path, model):
    path = keras_bn.export(model, tmp_path, image_bytes="tf")
    large = np.kron(pixels(12, 16), np.ones((5, 5, 1), np.uint8))
    small = Image.fromarray(large).resize((16, 12), Image.Resampling.BILINEAR)
    expected = ask(path, file(np.asarray(small)))
    # Pillow rounds to whole levels between its two passes.
    np.testing.assert_allclose(ask(path, file(large)), expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("channels, dtype", [(1, "float32"), (3, "uint8")])
def test_grey_and_integer_inputs(tmp_path, channels, dtype):
    inputs = keras.Input((8, 8, channels), dtype=dtype, name="image")
    model = keras.Model(inputs, layers.Flatten()(layers.Rescaling(1.0)(inputs)))
    image = pixels(8, 8, channels)
    path = keras_bn.export(model, tmp_path, image_bytes="raw")
    np.testing.assert_array_equal(ask(path, file(image)), image.reshape(1, -1))


def test_not_an_image(tmp_path, model):
    path = keras_bn.export(model, tmp_path, image_bytes="raw")
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file format"):
        ask(path, b"GET / HTTP/1.1")


@pytest.mark.parametrize("shapes", [[(8,)], [(None, None, 3)], [(8, 8, 2)], [(8, 8, 3), (8, 8, 3)]], ids=str)
def test_model_that_takes_no_single_image(tmp_path, shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    x = [layers.GlobalMaxPooling2D()(x) if len(x.shape) == 4 else x for x in inputs]
    model = keras.Model(inputs, layers.Add()(x) if len(x) > 1 else layers.Dense(2)(x[0]))
    with pytest.raises(keras_bn.KerasBNError, match="image_bytes needs one input of shape"):
        keras_bn.export(model, tmp_path, image_bytes="raw")
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_that_mixes_the_images_is_found(tmp_path, model):
    with pytest.raises(
        keras_bn.KerasBNError, match=r"signature 'serving_image' .* depends on the other rows"
    ):
        keras_bn.export(model, tmp_path, image_bytes=lambda batch: batch - tf.reduce_mean(batch))
