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

from keras_bn.kernels import general
from keras_bn.kernels import jax as kernel

SCRIPT = pathlib.Path(__file__).with_name("sharded.py")


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


@pytest.mark.slow
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
