"""The fused kernel: when it applies, and that nobody can tell that it did."""

import keras
import numpy as np
import pytest

from keras_bn import BatchNormalization, kernels, reference

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's kernel")


def _ones_and_zeros(channels):
    return tf.ones(channels), tf.zeros(channels)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", True), ("bfloat16", True), ("float64", False)])
def test_applies_to_what_the_kernel_takes(dtype, expected):
    assert kernels.applies(tf.zeros((2, 3), dtype)) is expected


def test_applies_in_graphs_but_not_under_xla():
    seen = []

    def function(x):
        seen.append(kernels.applies(x))
        return x

    tf.function(function)(tf.zeros((2, 3)))
    tf.function(function, jit_compile=True)(tf.zeros((2, 3)))
    assert seen == [True, False]


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3), (2, 4, 4, 3), (2, 2, 2, 2, 3)])
def test_keeps_static_and_dynamic_shapes(shape):
    for axis in range(1, len(shape)):
        channels = shape[axis]
        signature = tf.TensorSpec([d if a == axis else None for a, d in enumerate(shape)], tf.float32)

        @tf.function(input_signature=[signature])
        def normalize(x, axis=axis, channels=channels):
            return kernels.fused_batch_norm(x, *_ones_and_zeros(channels), 1e-3, axis)

        assert normalize.get_concrete_function().structured_outputs[0].shape.as_list() == list(
            signature.shape
        )
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        y, moments = normalize(x)
        expected, oracle = reference.train_forward(x, np.ones(channels), np.zeros(channels), 1e-3, axis)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        np.testing.assert_allclose(moments.variance, oracle.variance, rtol=1e-5)
        assert moments.count == x.size / channels


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one_row_divide_by_nothing(rows):
    y, moments = kernels.fused_batch_norm(tf.ones((rows, 3)), *_ones_and_zeros(3), 1e-3, -1)
    np.testing.assert_array_equal(y, np.zeros((rows, 3)))
    assert moments.count == rows
    if rows:
        np.testing.assert_array_equal(moments.variance, np.zeros(3))


@pytest.mark.parametrize("axis", [-1, 1])
def test_badly_scaled_data_keep_forward_and_gradient(axis):
    # TensorFlow's kernel alone returns a variance here that is 1e6 times too large.
    shape = (100, 4, 60, 60) if axis == 1 else (100, 60, 60, 4)
    x = np.random.default_rng(0).normal(1e4, 1e-2, shape).astype("float32")
    dy = np.random.default_rng(1).normal(size=shape).astype("float32")
    gamma, beta = np.full(4, 2.0, "float32"), np.ones(4, "float32")
    with tf.GradientTape() as tape:
        inputs, weights = tf.constant(x), [tf.constant(gamma), tf.constant(beta)]
        tape.watch([inputs, *weights])
        y, moments = kernels.fused_batch_norm(inputs, *weights, 1e-6, axis)
    dx, dgamma, dbeta = tape.gradient(y, [inputs, *weights], dy)
    expected, oracle = reference.train_forward(x, gamma, beta, 1e-6, axis)
    gradients = reference.train_gradients(dy, x, gamma, 1e-6, axis)
    # Squares summed in single precision, 360 000 of them, lose three digits.
    np.testing.assert_allclose(moments.variance, oracle.variance, rtol=1e-3)
    np.testing.assert_allclose(y, expected, atol=1e-2)
    np.testing.assert_allclose(dx, gradients.x, atol=1e-3 * abs(gradients.x).max())
    np.testing.assert_allclose(dgamma, gradients.gamma, atol=1e-3 * np.sqrt(dy.size))
    np.testing.assert_allclose(dbeta, gradients.beta, atol=1e-3 * np.sqrt(dy.size))


def test_second_derivatives_agree_with_the_general_path(monkeypatch):
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")

    def penalty_gradient():
        layer = BatchNormalization()
        value = tf.constant(x)
        with tf.GradientTape() as outer:
            outer.watch(value)
            with tf.GradientTape() as inner:
                inner.watch(value)
                loss = tf.reduce_sum(layer(value, training=True) ** 3)
            penalty = tf.reduce_sum(inner.gradient(loss, value) ** 2)
        return outer.gradient(penalty, value).numpy()

    fused = penalty_gradient()
    monkeypatch.setattr(kernels, "applies", lambda x: False)
    general = penalty_gradient()
    np.testing.assert_allclose(fused, general, atol=1e-4 * abs(general).max())


@pytest.mark.parametrize("axis", [-1, 1])
def test_xla_agrees_with_eager(axis):
    x = np.random.default_rng(0).normal(3, 2, (4, 6, 6, 6)).astype("float32")
    results = []
    for compiled in (False, True):
        layer = BatchNormalization(axis, momentum=0.5)
        layer.build(x.shape)

        @tf.function(jit_compile=compiled)
        def step(x, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = tf.reduce_sum(y**3)
            return y, tape.gradient(loss, x)

        results.append([*step(tf.constant(x)), *layer.get_weights()])
    for eager, jitted in zip(*results, strict=True):
        np.testing.assert_allclose(jitted, eager, atol=2e-5 * max(1, abs(np.asarray(eager)).max()))
