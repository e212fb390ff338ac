"""Donors of every kind of graph: each a built model, and inputs for it."""

import keras
import numpy as np
import pytest
from keras import layers


@keras.saving.register_keras_serializable(package="tests")
class Scale(layers.Layer):
    """A custom layer with a weight, an argument of its own and a keyword argument of call."""

    def __init__(self, power=1, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="normal")

    def call(self, x, shift=0.0):
        return x * self.factor**self.power + shift

    def get_config(self):
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable(package="tests")
def steep_tanh(x):
    return 2 * keras.ops.tanh(x)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def conv_net(**options):
    """A small VGG: fused activations, dropout, a dense head."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1", **options)(inputs)
    x = layers.Conv2D(4, 3, activation="relu", name="conv2", bias_initializer="normal")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(8, activation="relu", name="fc", bias_initializer="normal")(x)
    x = layers.Dropout(0.5, seed=1, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="predictions")(x), name="net")


def functional():
    return conv_net(), normal(20, 8, 8, 3)


def sequential():
    stack = [
        keras.Input((6,), name="features"),
        layers.Dense(5, activation="tanh", name="first"),
        layers.Dropout(0.3, seed=2, name="noise"),
        layers.Dense(4, activation="relu", name="second"),
        layers.Dense(2, name="last"),
    ]
    return keras.Sequential(stack, name="stack"), normal(20, 6)


def nested():
    backbone = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu", name="conv"), layers.Flatten()],
        name="backbone",
    )
    wide = keras.Input((144,))
    neck = keras.Model(wide, layers.Dense(8, activation="relu", name="fc")(wide), name="neck")
    inputs = keras.Input((8, 8, 3), name="image")
    head = layers.Dense(3, name="logits")
    return keras.Model(inputs, head(neck(backbone(inputs))), name="outer"), normal(20, 8, 8, 3)


def siamese():
    """A nested model called twice, and a layer called twice."""
    inner = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, activation="relu", name="embed")], name="tower"
    )
    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    shared = layers.Dense(3, activation="relu", name="shared")
    joined = layers.Concatenate(name="join")([shared(inner(left)), shared(inner(right))])
    model = keras.Model([left, right], layers.Dense(1, name="score")(joined), name="siamese")
    return model, [normal(20, 5), 2 * normal(20, 5) + 1]


def branches():
    """Residual and concatenating branches, two outputs in a dict, bare operations, inputs in a dict."""
    image, extra = keras.Input((6, 6, 4), name="image"), keras.Input((2,), name="extra")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(image)
    y = layers.Conv2D(4, 1, activation="relu", name="conv2")(x)
    y = layers.Add(name="add")([x, y])
    y = layers.Concatenate(name="cat")([y, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)])
    pooled = keras.ops.mean(keras.ops.relu(y) * 2.0, axis=(1, 2))
    features = layers.Concatenate(name="features")([pooled, extra])
    heat = layers.Conv2D(2, 1, name="map")(layers.ReLU(name="map_relu")(y))
    outputs = {"scores": layers.Dense(3, name="scores")(features), "map": heat}
    model = keras.Model({"image": image, "extra": extra}, outputs, name="branches")
    return model, {"image": normal(10, 6, 6, 4), "extra": normal(10, 2)}


def masked():
    """A mask that starts at an embedding, and arguments given by keyword."""
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    x = layers.Embedding(11, 6, mask_zero=True, name="embed")(tokens)
    x = layers.Dense(6, activation="relu", name="project")(x)
    attended = layers.MultiHeadAttention(2, 3, name="attend")(query=x, value=x, use_causal_mask=True)
    x = layers.LSTM(5, name="lstm")(layers.Add(name="sum")([x, attended]))
    x = Scale(power=2, name="scale")(x, shift=0.5)
    model = keras.Model(tokens, layers.Dense(2, name="out")(x), name="masked")
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 8, size=(20, 1))
    return model, np.where(np.arange(7) < lengths, rng.integers(1, 11, size=(20, 7)), 0).astype("int32")


def wrapped():
    """Wrappers, a Lambda, a custom activation, an activation that is a layer."""
    frames = keras.Input((4, 5, 3), name="frames")
    x = layers.TimeDistributed(layers.Conv1D(4, 2, activation="relu"), name="per_frame")(frames)
    x = layers.Reshape((16, 4), name="reshape")(x)
    x = layers.Conv1D(4, 3, activation=steep_tanh, name="conv")(x)
    x = layers.Bidirectional(layers.GRU(3), name="both")(x)
    x = layers.Lambda(lambda t: t * 3.0, name="triple")(x)
    x = layers.Dense(4, activation=layers.LeakyReLU(negative_slope=0.3), name="leaky")(x)
    return keras.Model(frames, layers.Dense(1, name="out")(x), name="wrapped"), normal(10, 4, 5, 3)


def policies():
    """Layers of several dtype policies."""
    inputs = keras.Input((8, 6), name="signal")
    x = layers.Conv1D(4, 3, activation="relu", dtype="mixed_float16", name="half")(inputs)
    x = layers.SeparableConv1D(4, 3, activation="relu", name="single")(x)
    x = layers.Conv1DTranspose(3, 2, activation="relu", dtype="float64", name="double")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x), name="policies"), normal(20, 8, 6)


DONORS = [functional, sequential, nested, siamese, branches, masked, wrapped, policies]


@pytest.fixture(params=DONORS, ids=lambda make: make.__name__)
def donor(request):
    """A model and inputs for it, of every kind in turn."""
    keras.utils.set_random_seed(0)
    return request.param()


@pytest.fixture
def snapshot():
    """A function that returns everything about a model that surgery must leave alone."""

    def take(model):
        layers = model._flatten_layers()
        return (
            [np.asarray(variable).tobytes() for variable in model.variables],
            [(layer.name, layer.trainable, len(layer._inbound_nodes)) for layer in layers],
            model.to_json() if model.name != "wrapped" else "",  # a lambda's code is dumped anew every time
        )

    return take
