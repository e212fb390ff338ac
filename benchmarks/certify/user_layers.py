"""Layers and models as people write them: the classes that `user_models` makes its examples of."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops


class ConvBlock(layers.Layer):
    """No get_config, and sublayers without names or build."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.conv, self.bn = (
            layers.Conv2D(filters, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
        )

    def call(self, x: Any, training: Any = None) -> Any:
        return ops.relu(self.bn(self.conv(x), training=training))


class Stage(layers.Layer):
    """A list of blocks, one after the other, and a shortcut."""

    def __init__(self, filters: int, count: int) -> None:
        super().__init__()
        self.blocks = [ConvBlock(filters) for _ in range(count)]
        self.project = layers.Conv2D(filters, 1)

    def call(self, x: Any) -> Any:
        shortcut = self.project(x)
        for block in self.blocks:
            x = block(x)
        return ops.add(x, shortcut)


class Branches(layers.Layer):
    """A dictionary of layers; one of them is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = {name: layers.Dense(3) for name in ("a", "b")}
        self.norms = {name: layers.BatchNormalization() for name in ("a", "b", "unused")}

    def build(self, shape: Any) -> None:
        for layer in self.parts.values():
            layer.build(shape)
        for layer in self.norms.values():
            layer.build((*shape[:-1], 3))

    def call(self, x: Any) -> Any:
        return ops.concatenate([self.norms[name](self.parts[name](x)) for name in ("a", "b")], axis=-1)


@keras.saving.register_keras_serializable(package="certify")
class Residual(layers.Layer):
    """With get_config, as the guide teaches it."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units, self.dense, self.bn = units, layers.Dense(units), layers.BatchNormalization()

    def build(self, shape: Any) -> None:
        self.dense.build(shape)
        self.bn.build((*shape[:-1], self.units))

    def call(self, x: Any, training: Any = None) -> Any:
        return x + ops.relu(self.bn(self.dense(x), training=training))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


class Classifier(keras.Model):
    """A subclassed model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(4)
        self.stages = [Stage(6, 1), Stage(6, 2)]
        self.pool, self.drop = layers.GlobalAveragePooling2D(), layers.Dropout(0.3)
        self.hidden, self.bn, self.out = layers.Dense(5), layers.BatchNormalization(), layers.Dense(3)

    def call(self, x: Any, training: Any = None) -> Any:
        x = self.stem(x, training=training)
        for stage in self.stages:
            x = stage(x)
        x = self.drop(self.pool(x), training=training)
        return self.out(ops.tanh(self.bn(self.hidden(x), training=training)))


@keras.saving.register_keras_serializable(package="certify")
class SqueezeExcite(layers.Layer):
    """Layers that are made in `build`, and a Sequential inside."""

    def build(self, shape: Any) -> None:
        channels = shape[-1]
        self.gate = keras.Sequential(
            [
                layers.GlobalAveragePooling2D(keepdims=True),
                layers.Conv2D(2, 1, use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Conv2D(channels, 1, activation="sigmoid"),
            ]
        )
        self.gate.build(shape)

    def call(self, x: Any, training: Any = None) -> Any:
        return x * self.gate(x, training=training)


class OfTensorFlow(layers.Layer):
    """Calls TensorFlow itself, which no symbolic tensor passes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = layers.Conv2D(4, 3), layers.BatchNormalization()
        self.second, self.bn2 = layers.Conv2D(4, 3), layers.BatchNormalization()

    def call(self, x: Any, training: Any = None) -> Any:
        x = tf.nn.relu(self.bn(tf.nn.space_to_depth(self.conv(x), 2), training=training))
        return tf.nn.relu(self.bn2(self.second(x), training=training))

    def compute_output_shape(self, shape: Any) -> Any:
        return (shape[0], (shape[1] - 2) // 2 - 2, (shape[2] - 2) // 2 - 2, 4)


class Cell(layers.Layer):
    """A cell of a recurrent layer, with BN of what comes in at each step."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.state_size = units
        self.inner, self.bn = layers.SimpleRNNCell(units), layers.BatchNormalization()

    def build(self, shape: Any) -> None:
        self.bn.build(shape)
        self.inner.build(shape)

    def call(self, x: Any, states: Any, training: Any = None) -> Any:
        return self.inner(self.bn(x, training=training), states)


class Autoencoder(keras.Model):
    """Two Functional models, a loss of its own, random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        inputs, codes = keras.Input((12,)), keras.Input((3,))
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(8)(inputs)))
        self.encoder = keras.Model(inputs, layers.Dense(3)(x))
        y = layers.ReLU()(layers.BatchNormalization()(layers.Dense(8)(codes)))
        self.decoder = keras.Model(codes, layers.Dense(12)(y))
        self.noise = layers.GaussianNoise(0.1)

    def call(self, x: Any, training: Any = None) -> Any:
        code = self.encoder(x, training=training)
        self.add_loss(ops.mean(code**2))
        return self.decoder(self.noise(code, training=training), training=training)


class TwoInputs(keras.Model):
    """Takes a dictionary and gives one."""

    def __init__(self) -> None:
        super().__init__()
        self.image = [ConvBlock(4), ConvBlock(6), layers.GlobalAveragePooling2D()]
        self.table, self.bn, self.out = layers.Dense(4), layers.BatchNormalization(), layers.Dense(2)

    def call(self, inputs: Any, training: Any = None) -> Any:
        x = inputs["image"]
        for layer in self.image:
            x = layer(x)
        y = self.bn(self.table(inputs["table"]), training=training)
        joined = ops.concatenate([x, ops.relu(y)], axis=-1)
        return {"answer": self.out(joined), "features": joined}


class Named(keras.Model):
    """A class of its own around a Functional graph."""

    def __init__(self, units: int = 4, **options: Any) -> None:
        inputs = keras.Input((6,))
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(units)(inputs)))
        super().__init__(inputs, layers.Dense(2)(x), **options)
        self.units = units

    def get_config(self) -> dict[str, Any]:
        return {"units": self.units, "name": self.name}


class SometimesSkipped(layers.Layer):
    """A residual branch that is dropped at random in training."""

    def __init__(self, filters: int, rate: float = 0.5) -> None:
        super().__init__()
        self.branch = [ConvBlock(filters), layers.Conv2D(filters, 1), layers.BatchNormalization()]
        self.rate, self.seeds = rate, keras.random.SeedGenerator(1)

    def call(self, x: Any, training: Any = None) -> Any:
        y = x
        for layer in self.branch:
            y = layer(y)
        if training:
            kept = keras.random.uniform((ops.shape(x)[0], 1, 1, 1), seed=self.seeds) > self.rate
            y = ops.where(kept, y / (1 - self.rate), 0.0)
        return x + y


class Encoder(layers.Layer):
    """A transformer's block with BN in the place of layer normalization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, width // 2)
        self.norms = (layers.BatchNormalization(), layers.BatchNormalization())
        self.feed_forward = keras.Sequential([layers.Dense(2 * width, "relu"), layers.Dense(width)])

    def call(self, x: Any, training: Any = None) -> Any:
        x = self.norms[0](x + self.attention(x, x), training=training)
        return self.norms[1](x + self.feed_forward(x), training=training)


class WithLayerOfAnother(layers.Layer):
    """Normalizes by a BN layer that it was given."""

    def __init__(self, units: int, bn: Any) -> None:
        super().__init__()
        self.dense, self.bn = layers.Dense(units), bn

    def call(self, x: Any) -> Any:
        return ops.tanh(self.bn(self.dense(x)))
