"""TensorFlow's implementations: which is chosen when, and that the results do not tell which it was."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bn import BatchNormalization, kernels, reference
from keras_bn.kernels import general

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow's kernels", allow_module_level=True)

from keras_bn.kernels import tensorflow as dispatch


def _ones_and_zeros(channels):
    return tf.ones(channels), tf.zeros(channels)


def _step(dy, x, gamma, beta, epsilon, axis, mask=None):
    """Outputs, mean, variance, and the gradients to x, gamma and beta."""
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, beta])
        y, moments = kernels.batch_norm(x, gamma, beta, epsilon, axis, mask)
    return y, moments.mean, moments.variance, *tape.gradient(y, [x, gamma, beta], dy)


def _oracle(dy, x, gamma, beta, epsilon, axis, mask=None):
    y, moments = reference.train_forward(x, gamma, beta, epsilon, axis, mask)
    gradients = reference.train_gradients(dy, x, gamma, epsilon, axis, mask)
    return y, moments.mean, moments.variance, gradients.x, gradients.gamma, gradients.beta


@pytest.fixture(params=["shifted", "large", "XLA"])
def kernel(request, monkeypatch):
    """Each whatever the size; `large` is fused for channels last without a mask, and analytic elsewhere."""
    monkeypatch.setattr(dispatch, "_LARGE_SIZE", math.inf if request.param == "shifted" else 0)
    monkeypatch.setattr(dispatch, "_LARGE_MATRIX_IN_XLA", 0)
    # What is chosen for XLA runs without it as well.
    for module in (dispatch, dispatch.analytic):
        monkeypatch.setattr(module, "compiles_with_xla", lambda: request.param == "XLA")


@pytest.mark.parametrize(
    ("shape", "axis", "dtype", "masked", "chosen"),
    [
        ((256, 1024), -1, "float32", False, "fused"),
        ((64, 1024), -1, "float32", False, "shifted"),
        ((None, 1024), -1, "float32", False, "fused or shifted"),
        ((None, 16), -1, "float32", False, "shifted"),
        ((None, 8, 8, 64), 3, "float32", False, "fused or shifted"),
        ((None, 32, 32, 64), 3, "float32", False, "fused"),
        ((None, None, None, 16), -1, "float32", False, "fused"),
        ((None, 16), -1, "bfloat16", False, "shifted"),
        ((256, 1024), -1, "bfloat16", False, "fused"),
        ((None, 1024), -1, "bfloat16", False, "fused or shifted"),
        ((8, 64, 32, 32), 1, "bfloat16", False, "fused"),
        ((None, 1024), -1, "bfloat16", True, "analytic or shifted"),
        ((8, 64, 16, 16), 1, "float32", False, "analytic"),
        ((None, 64, 32, 32), 1, "float32", False, "analytic"),
        ((8, 64, 32, 32), 1, "float16", False, "analytic"),
        ((256, 1024), -1, "float16", False, "fused"),
        ((64, 1024), -1, "float16", False, "shifted"),
        ((512, 1024), -1, "float64", False, "analytic"),
        ((1024, 1024), -1, "float32", False, "fused"),
        ((64, 1024), -1, "float32", True, "shifted"),
        ((256, 1024), -1, "float32", True, "analytic"),
        ((16, 8192), 0, "float32", False, "analytic"),
    ],
)
@pytest.mark.parametrize("around", ["graph", "XLA", "GPU"])
def test_the_implementation_is_chosen_by_what_is_known_while_tracing(
    shape, axis, dtype, masked, chosen, around, monkeypatch
):
    seen = []

    def spy(name, run):
        def spied(*arguments):
            seen.append("shifted" if name == "analytic" and arguments[-1] else name)
            return run(*arguments)

        return spied

    for name in ("fused", "analytic"):
        module = getattr(dispatch, name)
        monkeypatch.setattr(module, "batch_norm", spy(name, module.batch_norm))
    if around == "GPU":
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])

    def normalize(x):
        mask = tf.ones_like(x, tf.bool) if masked else None
        ones = tf.ones(shape[axis], "float64" if dtype == "float64" else "float32")
        return kernels.batch_norm(x, ones, ones, 1e-3, axis, mask)[0]

    function = tf.function(normalize, jit_compile=around == "XLA")
    function.get_concrete_function(tf.TensorSpec(shape, dtype))
    # Sizes are measured on CPUs, and decide nothing elsewhere.
    is_small_matrix = len(shape) == 2 and axis == -1 and (shape[0] or 128) * shape[1] < 2**20
    in_xla = "shifted" if is_small_matrix else "analytic"
    expected = {"graph": chosen, "XLA": in_xla, "GPU": "analytic" if masked else "fused"}[around]
    if around == "GPU" and dtype == "float64":
        expected = "analytic"
    assert seen == expected.split(" or ")


@pytest.mark.parametrize("examples", [1, 4, 40])
def test_the_kernel_is_chosen_by_the_size_of_the_batch_if_nothing_else_tells(examples, monkeypatch):
    monkeypatch.setattr(dispatch, "_LARGE_SIZE", 100)
    chosen = []
    for name, module in (("fused", dispatch.fused), ("shifted", dispatch.analytic)):

        def spy(x, *arguments, name=name, run=module.batch_norm):
            tf.py_function(lambda: chosen.append(name), [], [])
            return run(x, *arguments)

        monkeypatch.setattr(module, "batch_norm", spy)
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(2, 3, (examples, 5)).astype("float32") for _ in range(2))

    @tf.function(input_signature=[tf.TensorSpec([None, 5])] * 2)
    def step(dy, x):
        return _step(dy, x, *_ones_and_zeros(5), 1e-3, -1)

    results = step(dy, x)
    assert chosen == ["fused" if examples == 40 else "shifted"]
    expected = _oracle(dy, x, np.ones(5), np.zeros(5), 1e-3, -1)
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=0, atol=2e-6 * max(1, abs(value).max()))


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3), (2, 4, 4, 3), (2, 2, 2, 2, 3)])
def test_keeps_static_and_dynamic_shapes(shape, kernel):
    for axis in range(1, len(shape)):
        channels = shape[axis]
        signature = tf.TensorSpec([d if a == axis else None for a, d in enumerate(shape)], tf.float32)

        @tf.function(input_signature=[signature])
        def normalize(x, axis=axis, channels=channels):
            return kernels.batch_norm(x, *_ones_and_zeros(channels), 1e-3, axis)

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
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3)])
def test_no_rows_and_one_row_divide_by_nothing(rows, shape, kernel):
    axis = 1 + shape.index(3)
    y, moments = kernels.batch_norm(tf.ones((rows, *shape)), *_ones_and_zeros(3), 1e-3, axis)
    np.testing.assert_array_equal(y, np.zeros((rows, *shape)))
    assert moments.count == rows
    if rows:
        np.testing.assert_array_equal(moments.variance, np.zeros(3))


@pytest.mark.parametrize(
    ("shape", "axis", "mask_shape"),
    [
        ((12, 5), -1, (12, 1)),
        ((9, 4, 5), -1, (9, 4, 1)),
        ((9, 5, 4), 1, (9, 1, 4)),
        ((3, 4, 6, 5), -1, (3, 4, 6, 5)),
        ((3, 4, 5, 6), 2, (3, 1, 1, 6)),
        ((8, 5, 3, 2), 1, None),
        ((2, 3, 5, 2, 2), 2, None),
        ((6, 2, 3, 5), -1, None),
        ((5, 12), 0, (1, 12)),
        ((5, 3, 4), -3, None),
    ],
)
@pytest.mark.parametrize("in_graph", [False, True])
def test_forward_and_gradients_agree_with_the_oracle(shape, axis, mask_shape, in_graph, kernel):
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(2, 3, shape).astype("float32") for _ in range(2))
    gamma, beta = (rng.normal(size=shape[axis]).astype("float32") for _ in range(2))
    mask = None if mask_shape is None else rng.random(mask_shape) < 0.7

    def step(*values):
        return _step(*values, 1e-3, axis, mask)

    results = (tf.function(step) if in_graph else step)(*map(tf.constant, (dy, x, gamma, beta)))
    expected = _oracle(dy, x, gamma, beta, 1e-3, axis, mask)
    for result, value in zip(results, expected, strict=True):
        # Some 10 roundings, of numbers up to the largest.
        np.testing.assert_allclose(result, value, rtol=0, atol=2e-6 * abs(value).max())


@pytest.mark.parametrize(
    ("axis", "masked", "xla"),
    [(-1, False, False), (1, False, False), (-1, True, False), (-1, False, True), (1, True, True)],
)
def test_badly_scaled_data_keep_forward_and_gradient(axis, masked, xla):
    # TensorFlow's kernel alone returns a variance here that is 1e6 times too large.
    shape = (100, 4, 60, 60) if axis == 1 else (100, 60, 60, 4)
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 1e-2, shape).astype("float32")
    dy = rng.normal(size=shape).astype("float32")
    mask = rng.random(shape) < 0.7 if masked else None
    gamma, beta = np.full(4, 2.0, "float32"), np.ones(4, "float32")

    step = tf.function(lambda *values: _step(*values, 1e-6, axis, mask), jit_compile=xla)
    y, _, variance, dx, dgamma, dbeta = step(*map(tf.constant, (dy, x, gamma, beta)))
    outputs, _, variances, to_x, to_gamma, to_beta = _oracle(dy, x, gamma, beta, 1e-6, axis, mask)
    # Squares summed in single precision, 360 000 of them, lose three digits.
    np.testing.assert_allclose(variance, variances, rtol=1e-3)
    np.testing.assert_allclose(y, outputs, atol=1e-2)
    np.testing.assert_allclose(dx, to_x, atol=1e-3 * abs(to_x).max())
    np.testing.assert_allclose(dgamma, to_gamma, atol=1e-3 * np.sqrt(dy.size))
    np.testing.assert_allclose(dbeta, to_beta, atol=1e-3 * np.sqrt(dy.size))


@pytest.mark.parametrize("empty", [(2, 0, 3, 4), (2, 3, 0, 4), (0, 3, 2, 4)])
@pytest.mark.parametrize(("axis", "masked"), [(1, False), (1, True), (-1, False), (-1, True)])
@pytest.mark.parametrize("known", [False, True])
def test_empty_axes_give_empty_tensors(empty, axis, masked, known, kernel):
    channels = 4
    shape = empty if axis == -1 else (empty[0], channels, *empty[1:3])
    signature = shape if known else [d if a == axis % 4 else None for a, d in enumerate(shape)]

    @tf.function(input_signature=[tf.TensorSpec(signature)])
    def step(x):
        mask = tf.ones_like(x, tf.bool) if masked else None
        return _step(tf.ones_like(x), x, *_ones_and_zeros(channels), 1e-3, axis, mask)

    y, mean, variance, dx, dgamma, dbeta = step(tf.zeros(shape))
    assert y.shape == dx.shape == shape
    for result in (mean, variance, dgamma, dbeta):
        np.testing.assert_array_equal(result, np.zeros(channels))


@pytest.mark.parametrize(
    ("shape", "axis", "masked"), [((6, 3), -1, False), ((6, 3), -1, True), ((3, 3, 3), 1, False)]
)
@pytest.mark.parametrize("in_graph", [False, True])
def test_second_derivatives_agree_with_the_general_path(shape, axis, masked, in_graph, kernel, monkeypatch):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    x[0] = 0  # a norm has no derivative there
    mask = x < 0.5 if masked else None

    def penalty_gradient():
        layer = BatchNormalization(axis)
        layer.build(shape)

        def run(value):
            with tf.GradientTape() as outer:
                outer.watch(value)
                with tf.GradientTape() as inner:
                    inner.watch(value)
                    loss = tf.reduce_sum(layer(value, training=True, mask=mask) ** 3)
                penalty = tf.reduce_sum(inner.gradient(loss, value) ** 2)
            return outer.gradient(penalty, value)

        return (tf.function(run) if in_graph else run)(tf.constant(x)).numpy()

    fast = penalty_gradient()
    monkeypatch.setattr(kernels, "batch_norm", general.batch_norm)
    expected = penalty_gradient()
    np.testing.assert_allclose(fast, expected, atol=1e-4 * abs(expected).max())


def test_channels_of_any_mean_and_deviation_are_told_apart(kernel):
    # Some within the ratio that needs no shift, some beyond, some without any variance.
    means, deviations = np.array([0, 0, 3, 5, -300, 7e3, 2.5]), np.array([1, 0, 1, 1, 1e-2, 1e2, 0])
    x = np.random.default_rng(0).normal(means[:, None, None], deviations[:, None, None], (16, 7, 20, 20))
    x = x.astype("float32")
    y, moments = kernels.batch_norm(tf.constant(x), *_ones_and_zeros(7), 1e-6, 1)
    expected, oracle = reference.train_forward(x, np.ones(7), np.zeros(7), 1e-6, 1)
    np.testing.assert_allclose(moments.mean, oracle.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moments.variance, oracle.variance, rtol=1e-5, atol=1e-12)
    # x / deviation reaches 3e4.
    np.testing.assert_allclose(y, expected, atol=4e-3)


def test_an_outlier_in_the_first_example_spoils_no_moments(kernel):
    x = np.random.default_rng(0).normal(1e4, 1, (2**17, 4)).astype("float32")
    x[0] = 0
    for compiled in (False, True):
        normalize = tf.function(kernels.batch_norm, jit_compile=compiled)
        _, moments = normalize(tf.constant(x), *_ones_and_zeros(4), 1e-3, -1)
        # Long sums in single precision, of squares that are far apart; a shift by that example gives zero.
        np.testing.assert_allclose(moments.variance, x.astype("float64").var(0), rtol=1e-3)


def test_squares_that_overflow_are_shifted_first(kernel):
    x = np.random.default_rng(0).normal(1e18, 1e15, (8, 3, 64)).astype("float32")
    y, moments = kernels.batch_norm(tf.constant(x), *_ones_and_zeros(3), 1e-3, 1)
    np.testing.assert_allclose(moments.variance, x.astype("float64").var((0, 2)), rtol=1e-3)
    np.testing.assert_allclose(np.std(y, (0, 2)), 1, rtol=1e-3)


def test_a_graph_rewritten_to_16_bits_keeps_its_moments():
    x = np.random.default_rng(0).normal(3, 1, (32, 16, 40, 40)).astype("float32")
    name = "auto_mixed_precision_onednn_bfloat16"
    tf.config.optimizer.set_experimental_options({name: True})
    try:
        _, moments = tf.function(kernels.batch_norm)(tf.constant(x), *_ones_and_zeros(16), 1e-3, 1)
    finally:
        tf.config.optimizer.set_experimental_options({name: False})
    np.testing.assert_allclose(moments.variance, x.astype("float64").var((0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "axis", "masked"),
    [
        ((4, 6, 6, 6), -1, False),
        ((4, 6, 6, 6), 1, False),
        ((24, 6), -1, True),
        ((4, 6, 6), 1, True),
        ((4, 6, 6, 6), -1, True),
    ],
)
def test_xla_agrees_with_eager(shape, axis, masked):
    x = np.random.default_rng(0).normal(3, 2, shape).astype("float32")
    mask = x < 5 if masked else None
    results = []
    for compiled in (False, True):
        layer = BatchNormalization(axis, momentum=0.5)
        layer.build(x.shape)

        @tf.function(jit_compile=compiled)
        def step(x, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True, mask=mask)
                loss = tf.reduce_sum(y**3)
            return y, tape.gradient(loss, x)

        results.append([*step(tf.constant(x)), *layer.get_weights()])
    for eager, jitted in zip(*results, strict=True):
        np.testing.assert_allclose(jitted, eager, atol=2e-5 * max(1, abs(np.asarray(eager)).max()))
