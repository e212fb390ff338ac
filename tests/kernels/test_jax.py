"""JAX's kernel: derivatives of any order and mode, and batches that are sharded over devices."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("JAX's kernel", allow_module_level=True)

import jax
import jax.numpy as jnp

from keras_bn import BatchNormalization, reference
from keras_bn.kernels import general
from keras_bn.kernels import jax as kernel

SCRIPT = pathlib.Path(__file__).with_name("sharded.py")


@pytest.fixture(name="chosen_pass", params=[False, True], autouse=True)
def _chosen_pass(request, monkeypatch):
    """Whether the third pass over the values is taken always, as for few of them, or where it is needed."""
    if request.param:
        monkeypatch.setattr(kernel, "_SMALL_SIZE", 0)


def _arguments(shape, axis, mask_shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(2, 3, shape), "float32")
    gamma, beta = jnp.asarray(rng.normal(size=(2, shape[axis])), "float32")
    return (x, gamma, beta), None if mask_shape is None else jnp.asarray(rng.random(mask_shape) < 0.7)


@pytest.mark.parametrize(
    ("shape", "axis", "mask_shape"),
    [((6, 5, 3), -1, None), ((6, 3, 5), 1, None), ((6, 5, 3), -1, (6, 5, 1)), ((3, 6, 5), 0, (3, 6, 5))],
)
def test_derivatives_of_every_order_and_mode_agree_with_the_general_path(shape, axis, mask_shape):
    arguments, mask = _arguments(shape, axis, mask_shape)

    def cube(module):
        return lambda *values: jnp.sum(module.batch_norm(*values, 1e-3, axis, mask)[0] ** 3)

    def penalty(module):
        gradient = jax.grad(cube(module), (0, 1, 2))
        return lambda *values: sum(jnp.sum(g**2) for g in gradient(*values))

    for function in (cube, penalty):
        expected = jax.grad(function(general), (0, 1, 2))(*arguments)
        ours = function(kernel)
        tangents = tuple(jnp.ones_like(v) for v in arguments)
        for transformed in (jax.grad(ours, (0, 1, 2)), jax.jit(jax.grad(jax.remat(ours), (0, 1, 2)))):
            for found, other in zip(transformed(*arguments), expected, strict=True):
                # Sums of some 100 products of several factors, relative to the largest.
                np.testing.assert_allclose(found, other, atol=1e-4 * float(abs(other).max()))
        _, forward = jax.jvp(ours, arguments, tangents)
        reverse = sum(float(jnp.sum(g)) for g in expected)
        scale = sum(float(jnp.sum(abs(g))) for g in expected)
        np.testing.assert_allclose(forward, reverse, atol=1e-5 * scale)


def test_vmap_is_one_call_for_each():
    arguments, mask = _arguments((4, 6, 3), -1, (4, 6, 1))
    x = jnp.stack([arguments[0], 5 * arguments[0] + 1])

    def normalize(x):
        return kernel.batch_norm(x, *arguments[1:], 1e-3, -1, mask)

    y, moments = jax.vmap(normalize)(x)
    for index in range(2):
        expected, one = normalize(x[index])
        np.testing.assert_allclose(y[index], expected, atol=1e-6)
        np.testing.assert_allclose(moments.variance[index], one.variance, rtol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 3.7, 1e4])
@pytest.mark.parametrize("axis", [-1, 1])
def test_a_large_mean_in_one_channel_costs_no_digits_of_any(mean, axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8, 8)).astype("float32")
    np.moveaxis(x, axis, -1)[..., 1] += mean
    ones = np.ones(8, "float32")
    y, moments = jax.jit(lambda x: kernel.batch_norm(x, ones, 0 * ones, 1e-3, axis))(x)
    expected, oracle = reference.train_forward(x, ones, 0 * ones, 1e-3, axis)
    # Half a unit in the last place of the mean, and a few of the values near one.
    np.testing.assert_allclose(y, expected, atol=2e-6 + 6e-8 * mean)
    # A sum of sums of a few values each is rounded a few times where it is not corrected.
    np.testing.assert_allclose(moments.mean, oracle.mean, rtol=4e-7, atol=1e-7)
    np.testing.assert_allclose(moments.variance, oracle.variance, rtol=1e-6)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("levels", [[0, 3, -3, 0.5], [0, 3, 100, 3e4]])
def test_16_bits_are_normalized_as_in_single_precision(levels, dtype, axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8, 4)) + levels
    x[..., 3] = levels[3]  # without any variance
    x = np.moveaxis(x, -1, axis)
    values, dy = (jnp.asarray(v).astype(dtype) for v in (x, rng.normal(size=x.shape)))
    gamma, beta = jnp.asarray(rng.normal(size=(2, 4)), "float32")

    @jax.jit
    def step(values, gamma, beta, dy):
        def normalize(*arguments):
            return kernel.batch_norm(*arguments, 1e-3, axis)

        y, pull, moments = jax.vjp(normalize, values, gamma, beta, has_aux=True)
        return y, pull(dy), moments

    y, gradients, moments = step(values, gamma, beta, dy)
    x, dy = (np.asarray(v, "float64") for v in (values, dy))
    expected, oracle = reference.train_forward(x, gamma, beta, 1e-3, axis)
    rounding = float(jnp.finfo(dtype).eps)
    assert y.dtype == gradients[0].dtype == dtype
    np.testing.assert_allclose(np.asarray(y, "float64"), expected, rtol=rounding, atol=2e-5)
    np.testing.assert_allclose(moments.mean, oracle.mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(moments.variance, oracle.variance, rtol=1e-5, atol=1e-7)
    exact = reference.train_gradients(dy, x, np.asarray(gamma, "float64"), 1e-3, axis)
    for found, value in zip(gradients, (exact.x, exact.gamma, exact.beta), strict=True):
        np.testing.assert_allclose(
            np.asarray(found, "float64"), value, rtol=rounding, atol=2e-5 * abs(value).max()
        )


def test_a_step_that_gives_its_arguments_away_is_the_same_step():
    layer = BatchNormalization(momentum=0.5)
    layer.build((8, 6, 3))
    x = np.random.default_rng(0).normal(size=(8, 6, 3)).astype("float32")

    def step(weights, state, x):
        def loss(weights, x):
            y, new = layer.stateless_call(weights, state, x, training=True)
            return jnp.sum(y**3), new

        (_, new), (dweights, dx) = jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, x)
        return [w - g for w, g in zip(weights, dweights, strict=True)], new, dx

    def arguments():
        variables = layer.trainable_variables, layer.non_trainable_variables
        return [*([jnp.array(v.value) for v in part] for part in variables), jnp.array(x)]

    expected = jax.jit(step)(*arguments())
    found = jax.jit(step, donate_argnums=(0, 1, 2))(*arguments())
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("chosen_pass", [False], indirect=True)
def test_a_sharded_batch_is_one_batch(tmp_path):
    results = {}
    for devices in (1, 2, 4):
        flags = f"--xla_force_host_platform_device_count={devices}"
        path = tmp_path / f"{devices}.npz"
        environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        run = subprocess.run(
            [sys.executable, SCRIPT, path], env=environment, capture_output=True, text=True, timeout=240
        )
        assert run.returncode == 0, run.stderr
        results[devices] = dict(np.load(path))
        assert results[devices].pop("devices") == devices
    for devices in (2, 4):
        for name, expected in results[1].items():
            # Three steps of SGD on sums that are cut differently.
            np.testing.assert_allclose(
                results[devices][name], expected, rtol=2e-4, atol=2e-5, err_msg=f"{devices} {name}"
            )
