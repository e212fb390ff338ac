"""PyTorch's kernel: memory formats, 16 bits, compilation, and derivatives of second order."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("PyTorch's kernel", allow_module_level=True)

import torch

from keras_bn import BatchNormalization, kernels, reference
from keras_bn.kernels import general


def _step(module, x, gamma, beta, dy, axis):
    x, gamma, beta = (v.clone().requires_grad_() for v in (x, gamma, beta))
    y, moments = module.batch_norm(x, gamma, beta, 1e-3, axis)
    return y, moments, torch.autograd.grad(y, [x, gamma, beta], dy)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("axis", [1, -1])
def test_memory_formats_change_nothing_but_the_memory(format, axis):
    torch.manual_seed(0)
    x, dy = (torch.randn(4, 6, 5, 3).contiguous(memory_format=format) for _ in range(2))
    channels = x.shape[axis]
    gamma, beta = torch.randn(2, channels)
    y, moments, gradients = _step(kernels, x, gamma, beta, dy, axis)
    expected, oracle = reference.train_forward(x, gamma, beta, 1e-3, axis)
    others = reference.train_gradients(dy, x, gamma, 1e-3, axis)
    np.testing.assert_allclose(y.detach(), expected, atol=1e-5)
    np.testing.assert_allclose(moments.mean, oracle.mean, atol=1e-6)
    np.testing.assert_allclose(moments.variance, oracle.variance, rtol=1e-5)
    for found, other in zip(gradients, others, strict=True):
        np.testing.assert_allclose(found, other, atol=1e-4)
    if axis == 1:
        assert y.is_contiguous(memory_format=format)


@pytest.mark.parametrize(("shape", "axis"), [((8, 3), -1), ((4, 3, 5), 1), ((2, 4, 4, 3), -1)])
def test_second_derivatives_agree_with_the_general_path(shape, axis):
    torch.manual_seed(0)
    x, gamma, beta = torch.randn(shape), torch.randn(3), torch.randn(3)

    def penalty_gradients(module):
        values = [v.clone().requires_grad_() for v in (x, gamma, beta)]
        y, _ = module.batch_norm(*values, 1e-3, axis)
        first = torch.autograd.grad((y**3).sum(), values, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), values)

    for found, expected in zip(penalty_gradients(kernels), penalty_gradients(general), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * float(abs(expected).max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axis", [1, -1])
def test_16_bits_are_normalized_in_32(dtype, axis):
    torch.manual_seed(0)
    x = (torch.randn(8, 3, 4, 3) * 300 + 50).to(dtype)  # squares overflow in float16
    gamma, beta = torch.ones(3), torch.zeros(3)
    y, moments = kernels.batch_norm(x, gamma, beta, 1e-3, axis)
    expected, oracle = reference.train_forward(x.float(), gamma, beta, 1e-3, axis)
    np.testing.assert_allclose(y.float(), expected, atol=2 * torch.finfo(dtype).eps)
    np.testing.assert_allclose(moments.variance, oracle.variance, rtol=1e-5)
    scale, offset = torch.rand(2, 3)
    exact = general.affine(x, scale, offset, axis)
    found = kernels.affine(x, scale, offset, axis)
    np.testing.assert_allclose(found.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "axis"), [((9, 3), -1), ((9, 3, 4, 5), 1), ((9, 4, 5, 3), -1), ((9, 5, 3), -1)]
)
def test_affine_is_one_product_and_one_sum(shape, axis):
    torch.manual_seed(0)
    x, (scale, offset) = torch.randn(shape), torch.randn(2, 3)
    expected = general.affine(x.double(), scale.double(), offset.double(), axis)
    np.testing.assert_allclose(kernels.affine(x, scale, offset, axis), expected, atol=1e-6)
    # The identity of a retrofitted layer is exact.
    np.testing.assert_array_equal(kernels.affine(x, torch.ones(3), torch.zeros(3), axis), x)


def test_outliers_and_large_means_spoil_no_moments():
    rng = np.random.default_rng(0)
    for outlier in (0, 1000, 4095):
        x = rng.normal(1e4, 1e-1, (4096, 4)).astype("float32")
        x[outlier] = 9.9e3
        _, moments = kernels.batch_norm(torch.tensor(x), torch.ones(4), torch.zeros(4), 1e-3, -1)
        np.testing.assert_allclose(moments.variance, x.astype("float64").var(0), rtol=1e-4)


@pytest.mark.parametrize("mean", [0.0, 5.0, 20.0, 1000.0])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_large_mean_costs_no_digits(mean, axis):
    torch.manual_seed(0)
    x, dy = torch.randn(32, 6, 5, 6), torch.randn(32, 6, 5, 6)
    x.movedim(axis, -1)[..., 1] += mean
    gamma, beta = torch.randn(2, 6)
    y, moments, gradients = _step(kernels, x, gamma, beta, dy, axis)
    expected, oracle = reference.train_forward(x, gamma, beta, 1e-3, axis)
    others = reference.train_gradients(dy, x, gamma, 1e-3, axis)
    # Up to eight deviations, each of which costs a rounding, are normalized as they are.
    np.testing.assert_allclose(y.detach(), expected, atol=8e-6)
    np.testing.assert_allclose(moments.mean, oracle.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moments.variance, oracle.variance, rtol=2e-6)
    for found, other in zip(gradients, others, strict=True):
        # Sums of some 1000 products.
        np.testing.assert_allclose(found, other, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [1, -1])
def test_a_compiled_layer_is_the_layer(axis):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 3)
    plain, compiled = (BatchNormalization(axis, momentum=0.5) for _ in range(2))
    for layer in (plain, compiled):
        layer.build(x.shape)
    # `aot_eager` traces and differentiates as every backend of torch.compile does, without a C++ compiler.
    function = torch.compile(lambda v, training: compiled(v, training=training), backend="aot_eager")
    for training in (True, False):
        found, expected = function(x, training), plain(x, training=training)
        np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-6)
    for found, expected in zip(compiled.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
