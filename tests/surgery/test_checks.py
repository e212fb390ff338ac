"""Checks of a model that the functions on models share."""

import keras
import numpy as np
import pytest

import keras_bn
from keras_bn.errors import KerasBNError
from keras_bn.surgery._checks import check_keras_model

L = keras.layers


def test_a_model_of_keras_2_is_named_as_such_and_the_advice_works(tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    old = tf_keras.Sequential(
        [tf_keras.Input((4,)), tf_keras.layers.Dense(8), tf_keras.layers.BatchNormalization()]
    )
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    expected = old.predict(x, verbose=0)
    for function in (keras_bn.convert, keras_bn.fold, keras_bn.inspect):
        with pytest.raises(KerasBNError, match=r"tf_keras \(Keras 2\).*model\.h5.*docs/migration\.md"):
            function(old)
    old.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5")
    rebuilt = keras.Sequential([keras.Input((4,)), L.Dense(8), L.BatchNormalization()])
    rebuilt.set_weights(old.get_weights())
    for new in (loaded, rebuilt):
        np.testing.assert_allclose(new.predict(x, verbose=0), expected, rtol=1e-6, atol=1e-6)
        assert keras_bn.convert(new).report.rows[0].action == "converted"


def test_what_is_no_model():
    with pytest.raises(KerasBNError, match=r"Expected a keras.Model, got Dense\."):
        check_keras_model(L.Dense(1))
