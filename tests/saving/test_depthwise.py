"""Grouped convolutions in exports: which are rewritten, and that the answers stay."""

import keras
import numpy as np
import pytest
from keras import layers
from tensorflow.core.protobuf import saved_model_pb2

import keras_bn
from keras_bn.saving.session import servable


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def exported(layer, tmp_path):
    inputs = keras.Input((12, 12, 8), name="image")
    model = keras.Model(inputs, layers.BatchNormalization(name="normalized")(layer(inputs)))
    for variable in model.variables:
        variable.assign(np.abs(normal(*variable.shape)) + 0.5)
    images = normal(5, 12, 12, 8)
    path = keras_bn.export(model, tmp_path, examples=images)
    with servable(path, "serving_default") as served:
        answer = served.run({"image": images})["normalized"]
    expected = model.predict(images, verbose=0)
    # The order of summation differs between the kernels.
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    graph = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs[0]
    return [node.op for node in graph.graph_def.node]


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "same"},
        {"padding": "valid", "strides": 2},
        {"padding": "same", "use_bias": False},
    ],
)
@pytest.mark.parametrize("multiplier", [1, 3])
def test_one_channel_to_a_group_is_a_depthwise_convolution(tmp_path, arguments, multiplier):
    operations = exported(layers.Conv2D(8 * multiplier, 5, groups=8, **arguments), tmp_path)
    assert "DepthwiseConv2dNative" in operations and "PartitionedCall" not in operations
    assert "Mul" not in operations  # BN is folded into it


@pytest.mark.parametrize("arguments", [{"groups": 4}, {"groups": 8, "dilation_rate": 2}])
def test_other_groups_stay_as_they_are(tmp_path, arguments):
    assert "DepthwiseConv2dNative" not in exported(layers.Conv2D(8, 3, **arguments), tmp_path)
