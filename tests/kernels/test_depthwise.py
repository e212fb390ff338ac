"""The passes of one operation, against NumPy in double precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow's operations", allow_module_level=True)

from keras_bn.kernels import depthwise

pytestmark = pytest.mark.skipif(not depthwise.available(), reason="without oneDNN they are not used")


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (9, 33), (64, 1000), (0, 4)])
@pytest.mark.parametrize("known", ["eager", "shapes known", "shapes unknown"])
def test_agrees_with_numpy(shape, known):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=shape).astype("float32") for _ in range(2))
    scale, offset = (rng.normal(size=shape[1]).astype("float32") for _ in range(2))
    affine, products = depthwise.affine, depthwise.products
    if known != "eager":
        unknown = known == "shapes unknown"
        table = tf.TensorSpec([None, None] if unknown else shape)
        row = tf.TensorSpec([None] if unknown else shape[1:])
        affine = tf.function(affine, input_signature=[table, row, row])
        products = tf.function(products, input_signature=[table, table])
    # Two roundings, of numbers below 10.
    np.testing.assert_allclose(affine(x, scale, offset), x.astype("float64") * scale + offset, atol=2e-6)
    np.testing.assert_allclose(products(x, y), (x.astype("float64") * y).sum(0), atol=1e-5)


def test_an_infinity_stays_in_its_column():
    x = np.ones((8, 3), "float32")
    x[2, 1] = np.inf
    ones = tf.ones(3)
    np.testing.assert_array_equal(np.isfinite(depthwise.products(x, np.ones_like(x))), [True, False, True])
    np.testing.assert_array_equal(np.isfinite(depthwise.affine(x, ones, ones)).sum(0), [8, 7, 8])
