"""A call without preparation has the results, the effects and the errors of any other call."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("calls without preparation are PyTorch's", allow_module_level=True)

import torch

from keras_bn import BatchNormalization, BatchRenormalization
from keras_bn._keras import get_mask, set_mask
from keras_bn.layers import batch_normalization
from keras_bn.layers.preparation import has_one_way_to_be_called, needs_no_preparation


def _layer(kind=BatchNormalization, shape=(6, 4, 3), **arguments):
    layer = kind(momentum=0.5, name="bn", **arguments)
    layer.build(shape)
    return layer


def _x(*shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(shape or (6, 4, 3)).mul(3).add(1).to(dtype)


def _skips(layer, *args, **kwargs):
    return needs_no_preparation(layer, args, kwargs)


class _Prepared(BatchNormalization):
    """The same layer, always called as Keras calls layers."""


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "policy"), [(torch.float32, "float32"), (torch.float16, "mixed_float16")])
def test_outputs_gradients_and_statistics_are_those_of_a_prepared_call(training, dtype, policy):
    found = []
    for kind in (BatchNormalization, _Prepared):
        layer, x = _layer(kind, dtype=policy), _x(dtype=dtype).requires_grad_()
        y = layer(x, training=training)
        gradients = torch.autograd.grad(y.sum() + (y**2).sum(), [x, layer.gamma.value, layer.beta.value])
        found.append([y.detach(), *gradients, *map(torch.as_tensor, layer.get_weights())])
    assert _skips(_layer(dtype=policy), _x(dtype=dtype), training=training)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ([_x()], {}),
        ([_x()], {"training": None}),
        ([_x()], {"training": 1}),
        ([], {"inputs": _x(), "training": True}),
        ([_x(), True], {}),
        ([_x()], {"mask": None}),
        ([_x()], {"training": True, "mask": torch.ones(6, 4)}),
        ([_x(dtype=torch.float64)], {"training": True}),
        ([_x(dtype=torch.float16)], {"training": True}),
        ([_x().numpy()], {"training": True}),
        ([_x(6, 4, 5)], {"training": True}),
        ([_x(6, 3)], {"training": True}),
        ([keras.KerasTensor((6, 4, 3))], {"training": True}),
    ],
)
def test_arguments_that_need_preparation_get_it(args, kwargs):
    assert not _skips(_layer(), *args, **kwargs)


def test_layers_that_need_preparation_get_it():
    assert not _skips(BatchNormalization(), _x(), training=True)  # to be built
    assert not _skips(_layer(activity_regularizer="l2"), _x(), training=True)
    assert not _skips(_layer(dtype="mixed_float16"), _x(), training=True)
    layer = _layer()
    layer.add_loss(torch.ones(()))
    assert not _skips(layer, _x(), training=True)
    layer(_x(), training=True)  # which forgets the losses of the call before
    assert layer.losses == []


def test_a_mask_goes_in_and_on():
    x = _x()
    mask = torch.rand(6, 4) < 0.7
    set_mask(x, mask)
    y = _layer()(x, training=True)
    assert get_mask(y) is mask
    torch.testing.assert_close(y, _layer()(_x(), training=True, mask=mask))


def test_training_is_that_of_the_layer_around():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.bn = BatchNormalization(momentum=0.5)

        def call(self, x, training=None):
            return self.bn(x)

    block = Block()
    for training in (False, True):
        block(_x(), training=training)
        assert np.any(block.bn.get_weights()[2]) == training


def test_layers_of_users_find_training_in_the_call():
    class Followed(BatchNormalization):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.dropout = keras.layers.Dropout(0.5)

        def call(self, inputs, training=None, mask=None):
            return self.dropout(super().call(inputs, training, mask))

    y = _layer(Followed)(_x(), training=True)
    assert float((y == 0).float().mean()) > 0.2


def test_hooks_of_torch_are_called():
    layer, seen = _layer(), []
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, y: 2 * y)
    y = layer(_x(), training=True)
    assert seen == ["before"]
    torch.testing.assert_close(y, 2 * _layer()(_x(), training=True))


def test_a_remat_scope_computes_again():
    with keras.RematScope("full"):
        layer = _layer()
    calls, call = [], layer.call
    layer.call = lambda *args, **kwargs: calls.append(1) or call(*args, **kwargs)
    x = _x().requires_grad_()
    y = layer(x, training=False)
    torch.autograd.grad(y.sum(), x)
    assert len(calls) == 2


def test_what_keras_chooses_between_is_left_to_keras():
    layer = _layer()
    assert has_one_way_to_be_called(layer, [_x()])
    assert not has_one_way_to_be_called(layer, [keras.KerasTensor((6, 4, 3))])
    assert not has_one_way_to_be_called(layer, [])
    with keras.RematScope("full"):
        assert not has_one_way_to_be_called(_layer(), [_x()])


def test_a_stateless_call_leaves_the_weights_alone():
    layer = _layer()
    before = layer.get_weights()
    weights, state = (
        [v.value for v in s] for s in (layer.trainable_variables, layer.non_trainable_variables)
    )
    _, new = layer.stateless_call(weights, state, _x(), training=True)
    for found, expected in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    layer(_x(), training=True)
    for found, expected in zip(new, layer.get_weights()[2:], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_errors_name_the_layer_and_its_arguments():
    layer = _layer(shape=(1, 3))
    before = layer.get_weights()
    with pytest.raises(
        ValueError, match=r"calling BatchNormalization\.call\(\)(.|\n)*one value per channel"
    ) as error:
        layer(torch.ones(1, 3), training=True)
    assert "training=True" in str(error.value)
    for found, expected in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="value 3"):
        _layer()(_x(6, 4, 5), training=True)


def test_a_model_passes_on_what_needs_no_preparation(monkeypatch):
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, BatchNormalization()(inputs))
    decided = []

    def recording(*arguments):
        decided.append(needs_no_preparation(*arguments))
        return decided[-1]

    monkeypatch.setattr(batch_normalization, "needs_no_preparation", recording)
    model.compile("sgd", "mse")
    model.fit(_x().numpy(), _x().numpy(), verbose=0)
    model.predict(_x().numpy(), verbose=0)
    assert decided
    assert all(decided)


def test_variants_are_called_as_keras_calls_layers():
    layer, reached = _layer(BatchRenormalization), []
    prepare = keras.layers.Layer._assert_input_compatibility
    layer._assert_input_compatibility = lambda *a: reached.append(1) or prepare(layer, *a)
    layer(_x(), training=True)
    assert reached == [1]
