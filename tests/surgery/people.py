"""Models as people write them: BN inside layers of their own, subclassed models, lists and dictionaries."""

import keras
import numpy as np
from keras import layers, ops


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


class Block(layers.Layer):
    """Has no get_config: Keras's own leaves out its name and its number of filters."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(filters, 3, padding="same")
        self.bn = layers.BatchNormalization()

    def build(self, shape):
        self.conv.build(shape)
        self.bn.build(self.conv.compute_output_shape(shape))

    def call(self, x, training=None):
        return ops.relu(self.bn(self.conv(x), training=training))


class Residual(layers.Layer):
    """Blocks in a list, a shortcut in a dictionary, an addition by the operator."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block(filters), Block(filters)]
        self.parts = {
            "shortcut": layers.Conv2D(filters, 1, use_bias=False),
            "bn": layers.BatchNormalization(),
        }

    def build(self, shape):
        out = (*shape[:-1], self.blocks[0].conv.filters)
        self.blocks[0].build(shape)
        self.blocks[1].build(out)
        self.parts["shortcut"].build(shape)
        self.parts["bn"].build(out)

    def call(self, x):
        y = x
        for block in self.blocks:
            y = block(y)
        return y + self.parts["bn"](self.parts["shortcut"](x))


class WrongConfig(layers.Layer):
    """Cannot be made of its configuration."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "factor": 2}


class Helper:
    """No layer, so Keras does not see what it holds."""

    def __init__(self, layer):
        self.layer = layer


class Net(keras.Model):
    """Subclassed, with layers in attributes and lists."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.stem = layers.Dense(units, name="stem")
        self.bn = layers.BatchNormalization(name="bn")
        self.hidden = [layers.Dense(units, name="hidden"), layers.BatchNormalization(name="hidden_bn")]
        self.drop = layers.Dropout(0.5, seed=3)
        self.head = layers.Dense(2, name="head")

    def call(self, x, training=None):
        x = ops.relu(self.bn(self.stem(x), training=training))
        for layer in self.hidden:
            x = layer(x)
        return self.head(self.drop(x, training=training))


def blocks():
    inputs = keras.Input((8, 8, 3), name="image")
    x = Block(4, name="stem")(Block(4)(inputs))
    x = layers.GlobalAveragePooling2D()(Residual(6, name="residual")(x))
    return keras.Model(inputs, layers.Dense(2, name="out")(x)), normal(6, 8, 8, 3)


def wrong_config():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="bn")(WrongConfig(layers.Conv2D(4, 3), name="scale")(inputs))
    return keras.Model(inputs, x), normal(6, 8, 8, 3)


def subclassed():
    model = Net()
    x = normal(6, 5)
    model(x)
    return model, x


def subclassed_inside():
    inputs = keras.Input((5,))
    return keras.Model(inputs, layers.Dense(1)(Net(name="inner")(inputs))), normal(6, 5)


def time_distributed():
    cnn = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(name="bn"), layers.ReLU()],
        name="cnn",
    )
    cnn.add(layers.GlobalAveragePooling2D())
    stack = [
        keras.Input((5, 8, 8, 3)),
        layers.TimeDistributed(cnn, name="td"),
        layers.LSTM(4),
        layers.Dense(2),
    ]
    return keras.Sequential(stack), normal(4, 5, 8, 8, 3)


@keras.saving.register_keras_serializable(package="people")
class Cell(layers.Layer):
    """The cell of a recurrent layer, with BN of the new state."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.state_size = self.units = units
        self.dense = layers.Dense(units)
        self.bn = layers.BatchNormalization(name="bn")

    def build(self, shape):
        self.dense.build((shape[0], shape[1] + self.units))
        self.bn.build((shape[0], self.units))

    def call(self, inputs, states, training=None):
        h = self.bn(self.dense(ops.concatenate([inputs, states[0]], -1)), training=training)
        return ops.tanh(h), [ops.tanh(h)]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def recurrent():
    inputs = keras.Input((5, 3))
    x = layers.RNN(Cell(4), return_sequences=True, name="rnn")(inputs)
    x = layers.Bidirectional(layers.RNN(Cell(2)), name="both")(x)
    return keras.Model(inputs, layers.Dense(1)(x)), normal(6, 5, 3)


def siamese():
    tower = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4), layers.BatchNormalization(name="bn"), layers.ReLU()],
        name="tower",
    )
    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    model = keras.Model({"left": left, "right": right}, layers.Dot(-1)([tower(left), tower(right)]))
    return model, {"left": normal(6, 5), "right": normal(6, 5, seed=1)}


class Split(layers.Layer):
    """Several outputs in a dictionary, inputs in a dictionary and by keyword."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.bn = layers.Dense(4), layers.BatchNormalization()

    def build(self, features_shape, extra_shape=None):
        self.dense.build(features_shape["a"])
        self.bn.build((None, 4))

    def call(self, features, extra=None, training=None):
        y = self.bn(self.dense(features["a"]), training=training)
        return {"plus": y + extra, "minus": y - features["b"]}


def dictionaries():
    a, b, c = (keras.Input((n,), name=name) for name, n in (("a", 3), ("b", 4), ("c", 4)))
    outputs = Split(name="split")({"a": a, "b": b}, extra=c)
    model = keras.Model({"a": a, "b": b, "c": c}, {k: layers.Dense(1, name=k)(v) for k, v in outputs.items()})
    return model, {"a": normal(6, 3), "b": normal(6, 4), "c": normal(6, 4, seed=1)}


def u_net():
    inputs = keras.Input((None, None, 3))
    down = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(inputs))
    deep = Block(4)(layers.MaxPooling2D()(layers.ReLU()(down)))
    up = layers.Concatenate()([layers.UpSampling2D()(deep), down])
    return keras.Model(inputs, layers.Conv2D(2, 1, name="logits")(Block(4)(up))), normal(3, 8, 8, 3)


def gan():
    noise = keras.Input((4,))
    x = layers.Reshape((2, 2, 4))(layers.LeakyReLU()(layers.BatchNormalization()(layers.Dense(16)(noise))))
    x = layers.BatchNormalization()(layers.Conv2DTranspose(4, 3, strides=2, use_bias=False)(x))
    generator = keras.Model(noise, layers.Conv2D(1, 3, padding="same")(x), name="generator")
    critic = keras.Sequential(
        [keras.Input((5, 5, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten()],
        name="critic",
    )
    return keras.Model(noise, layers.Dense(1)(critic(generator(noise)))), normal(6, 4)


def preprocessing():
    scaling = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0])
    inputs = keras.Input((8, 8, 3))
    x = layers.RandomFlip(seed=1)(scaling(layers.Rescaling(0.5)(inputs)))
    return keras.Model(inputs, layers.Flatten()(Block(3)(x))), normal(6, 8, 8, 3)


def mixed_precision():
    inputs = keras.Input((8, 8, 3))
    x = Block(4, dtype="mixed_bfloat16", name="half")(inputs)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(layers.GlobalAveragePooling2D()(x))), normal(
        6, 8, 8, 3
    )


MODELS = (
    *(blocks, wrong_config, subclassed, subclassed_inside, time_distributed, recurrent, siamese),
    *(dictionaries, u_net, gan, preprocessing, mixed_precision),
)


def scramble(model):
    """Give every BN layer statistics and parameters that no two channels share."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                low, high = (0.5, 1.5) if weight.name in ("gamma", "moving_variance") else (-0.3, 0.3)
                weight.assign(rng.uniform(low, high, weight.shape))
    return model


def outputs(model, inputs, training=False):
    """The outputs on a batch, flat, as float64 arrays."""
    found = keras.tree.flatten(model(inputs, training=training))
    return [ops.convert_to_numpy(ops.cast(each, "float32")).astype("float64") for each in found]


def values(variables):
    return [ops.convert_to_numpy(ops.cast(v, "float64")) for v in variables]


class Misconfigured(layers.Layer):
    """Cannot be created from its configuration, and holds no BN."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "factor": 2}
