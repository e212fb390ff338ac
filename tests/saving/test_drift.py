"""Drift of requests from the reference that travels with an export."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_bn
from keras_bn import KerasBNError
from keras_bn.saving import reference, warm_up


def images(seed, count=200, shift=0.0, scale=1.0):
    random = np.random.default_rng(seed)
    return (shift + scale * random.normal(2, 1, (count, 6, 6, 3))).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3), name="image")
    h = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    h = keras.layers.ReLU()(keras.layers.BatchNormalization(name="bn")(h))
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(h))
    donor = keras.Model(inputs, outputs)
    return keras_bn.recalibrate(donor, images(9), progress=False).model


@pytest.fixture(scope="module")
def version(model, tmp_path_factory):
    return keras_bn.export(model, tmp_path_factory.mktemp("models") / "m", reference=images(0))


def test_the_reference_is_what_numpy_computes(model, version):
    known = reference.read(version)
    assert list(known) == ["input image", "bn"]
    x = images(0).astype("float64")
    convolved = np.asarray(model.layers[1](images(0)), "float64")
    for name, values in (("input image", x), ("bn", convolved)):
        moments = known[name].moments
        flat = values.reshape(-1, values.shape[-1])
        assert moments.count == len(flat)
        # The model's float32 arithmetic, reduced row by row.
        np.testing.assert_allclose(moments.mean, flat.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moments.variance, flat.var(0), rtol=1e-5)


@pytest.mark.parametrize("with_model", [False, True])
def test_data_like_the_reference_is_no_drift_and_other_data_is(model, version, with_model):
    donor = model if with_model else None
    assert not keras_bn.drift(version, images(1), model=donor).drifted
    report = keras_bn.drift(version.parent, images(2, shift=0.5), model=donor)
    assert report.drifted
    assert [row.name for row in report.rows] == ["input image", "bn"][: 1 + with_model]
    assert report.rows[0].shift == pytest.approx(0.5, abs=0.1)
    assert report.examples == report.reference_examples == 200


def test_data_in_every_form(version, tmp_path):
    x = images(3, shift=1.0)
    warm_up.write(tmp_path, [("serving_default", {"image": each[None]}) for each in x])
    expected = keras_bn.drift(version, x).rows[0].p_value
    batches = [x[i : i + 30] for i in range(0, len(x), 30)]
    for data in ({"image": x}, batches, ({"image": b} for b in batches), tf.data.Dataset.from_tensors(x)):
        assert keras_bn.drift(version, data).rows[0].p_value == pytest.approx(expected, rel=1e-6)
    assert keras_bn.drift(version, tmp_path / warm_up.FILE).rows[0].p_value == pytest.approx(
        expected, rel=1e-6
    )


def test_what_does_not_fit_is_refused(model, version, tmp_path):
    plain = keras_bn.export(model, tmp_path / "plain")
    with pytest.raises(KerasBNError, match="export the model with reference=data"):
        keras_bn.drift(plain, images(0))
    with pytest.raises(KerasBNError, match="neither an exported version nor a folder"):
        keras_bn.drift(tmp_path / "missing", images(0))
    with pytest.raises(KerasBNError, match="5 channels on its last axis"):
        keras_bn.drift(version, np.zeros((30, 6, 6, 5)))
    with pytest.raises(KerasBNError, match="no input 'picture'"):
        keras_bn.drift(version, {"picture": images(0)})
    with pytest.raises(KerasBNError, match="The sample has 3 examples"):
        keras_bn.drift(version, images(0, 3))


def test_a_log_is_compared_with_the_model_too(model, version, tmp_path):
    x = images(4)
    warm_up.write(tmp_path, [("serving_default", {"image": each}) for each in np.split(x, 8)])
    found = keras_bn.drift(version, tmp_path / warm_up.FILE, model=model)
    expected = keras_bn.drift(version, x, model=model)
    assert [row.name for row in found.rows] == ["input image", "bn"]
    for row, other in zip(found.rows, expected.rows, strict=True):
        # Batches of other sizes, in float32.
        assert row.p_value == pytest.approx(other.p_value, rel=1e-3)


def test_layers_are_paired_by_position_and_other_models_refused(model, version):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.get_layer("bn").name = "bn_1"  # as a layer of one's own may name it in another copy
    assert [row.name for row in keras_bn.drift(version, images(1), model=copy).rows] == ["input image", "bn"]
    other = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.BatchNormalization(name="other")])
    with pytest.raises(KerasBNError, match=r"has the BN layers other, but the reference has bn; give"):
        keras_bn.drift(version, images(1), model=other)


@pytest.mark.parametrize("content", [b"", b"junk" * 20, None])
def test_a_damaged_reference_and_data_that_is_not_finite(model, tmp_path, content):
    version = keras_bn.export(model, tmp_path / "m", reference=images(0))
    with pytest.raises(KerasBNError, match="Input 'image' has values that are not finite"):
        keras_bn.drift(version, np.full((30, 6, 6, 3), np.nan))
    (file,) = version.rglob(reference.FILE)
    file.write_bytes(file.read_bytes()[:300] if content is None else content)
    with pytest.raises(KerasBNError, match=r"keras_bn_reference\.npz is damaged; export the model"):
        keras_bn.drift(version, images(0))


def test_masked_sequences_count_real_values_alone(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 3), name="x")
    h = keras_bn.BatchNormalization(name="bn")(keras.layers.Masking(0.0)(inputs))
    model = keras.Model(inputs, keras.layers.LSTM(2)(h))
    random = np.random.default_rng(0)
    mask = np.arange(5) < random.integers(1, 6, 64)[:, None]
    x = (random.normal(3, 1, (64, 5, 3)) * mask[..., None]).astype("float32")
    known = reference.of_model(model, ["x"], x)
    np.testing.assert_allclose(known["bn"].moments.mean, x[mask].mean(0), rtol=1e-5)
    assert known["bn"].moments.count == mask.sum()


class Untracked(keras.layers.Layer):
    """Holds a BN layer in an object that Keras does not look into."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = SimpleNamespace(bn=keras.layers.BatchNormalization(name="bn"))

    def call(self, x):
        return self.parts.bn(x)


def test_a_layer_that_keras_does_not_track_is_in_the_reference(tmp_path):
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, Untracked(name="block")(inputs))
    x = np.random.default_rng(0).normal(3, 2, (50, 3)).astype("float32")
    version = keras_bn.export(model, tmp_path / "m", reference=x)
    known = reference.read(version)
    assert len(known) == 2
    moments = known["bn"].moments
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-5)
    report = keras_bn.drift(version, x + 5, model=model)
    assert [row.name for row in report.rows if row.p_value < 1e-6] == ["input x", "bn"]
