"""Models as people write them, each with inputs for `predict`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

Example = tuple[keras.Model, Any]


def _normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


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


def _cnn(name: str | None = None) -> keras.Model:
    stack = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()]
    stack += [layers.SeparableConv2D(6, 3), layers.BatchNormalization(), layers.ReLU()]
    return keras.Sequential([*stack, layers.GlobalAveragePooling2D()], name=name)


def own_layer() -> Example:
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(ConvBlock(6)(ConvBlock(4)(inputs)))
    return keras.Model(inputs, layers.Dense(2)(x)), _normal(6, 8, 8, 3)


def list_of_blocks() -> Example:
    stack = [keras.Input((8, 8, 3)), Stage(4, 2), layers.MaxPooling2D(), Stage(6, 3), layers.Flatten()]
    return keras.Sequential([*stack, layers.Dense(2)]), _normal(6, 8, 8, 3)


def dictionary_of_layers() -> Example:
    return keras.Sequential([keras.Input((5,)), Branches(), layers.ReLU(), layers.Dense(2)]), _normal(40, 5)


def subclassed() -> Example:
    model, x = Classifier(), _normal(6, 8, 8, 3)
    model(x)
    return model, x


def built_by_a_call() -> Example:
    model = keras.Sequential([layers.Dense(6), layers.BatchNormalization(), layers.ReLU(), layers.Dense(2)])
    x = _normal(40, 5)
    model(x[:1])
    return model, x


def siamese() -> Example:
    tower = _cnn("tower")
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    model = keras.Model([left, right], layers.Dot(-1, normalize=True)([tower(left), tower(right)]))
    return model, {"right": _normal(6, 8, 8, 3, seed=1), "left": 2 * _normal(6, 8, 8, 3)}


def generator() -> Example:
    stack = [keras.Input((6,)), layers.Dense(64, use_bias=False), layers.BatchNormalization()]
    stack += [layers.LeakyReLU(), layers.Reshape((4, 4, 4))]
    for filters in (6, 4):
        stack += [
            layers.Conv2DTranspose(filters, 4, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
        ]
    return keras.Sequential([*stack, layers.Conv2D(1, 3, padding="same", activation="tanh")]), _normal(8, 6)


def discriminator() -> Example:
    stack: list[Any] = [keras.Input((16, 16, 1))]
    for filters in (4, 8):
        stack += [layers.Conv2D(filters, 4, strides=2, padding="same"), layers.BatchNormalization()]
        stack += [layers.LeakyReLU(), layers.Dropout(0.3)]
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(1)]), _normal(6, 16, 16, 1)


def u_net() -> Example:
    inputs = keras.Input((None, None, 3))
    skips, x = [], inputs
    for filters in (4, 6):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same")(x)))
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = ConvBlock(8)(x)
    for filters, skip in zip((6, 4), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = ConvBlock(filters)(layers.BatchNormalization()(layers.Concatenate()([x, skip])))
    return keras.Model(inputs, layers.Conv2D(2, 1)(x)), _normal(4, 16, 16, 3)


def preprocessing_inside() -> Example:
    x = np.random.default_rng(0).uniform(0, 255, (8, 12, 12, 3)).astype("float32")
    scale = layers.Normalization()
    scale.adapt(x)
    stack = [
        keras.Input((12, 12, 3)),
        layers.Resizing(8, 8),
        scale,
        layers.RandomFlip(),
        layers.RandomRotation(0.1),
    ]
    return keras.Sequential([*stack, _cnn(), layers.Dense(2)]), x


def nested() -> Example:
    inputs = keras.Input((8, 8, 3))
    inner = keras.Sequential([_cnn("backbone"), layers.Dense(4), layers.BatchNormalization()], name="encoder")
    model = keras.Model(
        inputs, layers.Dense(2)(layers.Activation("tanh")(inner(layers.Rescaling(0.5)(inputs))))
    )
    return model, _normal(6, 8, 8, 3)


def time_distributed() -> Example:
    stack = [
        keras.Input((3, 8, 8, 3)),
        layers.TimeDistributed(_cnn()),
        layers.BatchNormalization(),
        layers.GRU(4),
    ]
    return keras.Sequential([*stack, layers.Dense(2)]), _normal(4, 3, 8, 8, 3)


def stateful() -> Example:
    inputs = keras.Input(batch_shape=(4, 5, 3))
    x = layers.LSTM(4, stateful=True, return_sequences=True)(layers.BatchNormalization()(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization()(x))), _normal(8, 5, 3)


def shared() -> Example:
    bn, first, second = layers.BatchNormalization(), layers.Dense(4), layers.Dense(4)
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    x = layers.Concatenate()([bn(first(a)), bn(second(b))])
    return keras.Model({"a": a, "b": b}, layers.Dense(2)(x)), {
        "b": _normal(40, 4) + 1,
        "a": _normal(40, 4, seed=1),
    }


def masked_text() -> Example:
    words = np.random.default_rng(0).integers(0, 9, (12, 7))
    words[:, 5:] = 0
    inputs = keras.Input((None,), dtype="int32")
    x = layers.BatchNormalization()(layers.Embedding(10, 4, mask_zero=True)(inputs))
    x = layers.BatchNormalization()(layers.Bidirectional(layers.LSTM(3))(x))
    return keras.Model(inputs, layers.Dense(2)(x)), words


def detector() -> Example:
    inputs = keras.Input((16, 16, 3))
    x = Stage(4, 1)(inputs)
    small = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, strides=2, padding="same")(x)))
    outputs = {
        name: layers.Concatenate(1)(
            [layers.Reshape((-1, 4))(layers.Conv2D(4, 3, padding="same")(f)) for f in (x, small)]
        )
        for name in ("boxes", "classes")
    }
    return keras.Model(inputs, outputs), _normal(4, 16, 16, 3)


def channels_of_dense_blocks() -> Example:
    stack = [
        keras.Input((6, 5)),
        layers.Dense(4),
        layers.BatchNormalization(axis=1),
        Residual(4),
        layers.Conv1D(3, 2),
    ]
    return keras.Sequential(
        [*stack, layers.BatchNormalization(), layers.Flatten(), layers.Dense(2)]
    ), _normal(20, 6, 5)


def int8() -> Example:
    model, x = own_dense()
    model.quantize("int8")
    return model, x


def lora() -> Example:
    model, x = own_dense()
    for layer in model.layers:
        if isinstance(layer, layers.Dense):
            layer.enable_lora(2)
            layer.lora_kernel_b.assign(_normal(*layer.lora_kernel_b.shape) / 4)
    return model, x


def own_dense() -> Example:
    stack: list[Any] = [keras.Input((6,))]
    for units in (8, 6):
        stack += [layers.Dense(units), layers.BatchNormalization(), layers.ReLU()]
    return keras.Sequential([*stack, Residual(6), layers.Dense(2)]), _normal(40, 6)


def sixteen_bits() -> Example:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        stack = [keras.Input((8, 8, 3)), ConvBlock(4), layers.Conv2D(6, 3), layers.BatchNormalization()]
        stack += [layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(2, dtype="float32")]
        return keras.Sequential(stack), _normal(8, 8, 8, 3)
    finally:
        keras.config.set_dtype_policy(policy)


def _reloaded(suffix: str) -> Example:
    model, x = own_dense()
    model.compile("adam", keras.losses.MeanSquaredError())
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / f"model{suffix}")
        model.save(path)
        return keras.models.load_model(path), x


def reloaded_keras() -> Example:
    return _reloaded(".keras")


def reloaded_h5() -> Example:
    return _reloaded(".h5")


def keras_hub_task() -> Example:
    import keras_hub

    from benchmarks.certify.families import KERAS_HUB

    converter = keras_hub.layers.ResNetImageConverter(height=32, width=32, scale=1 / 255.0)
    model = keras_hub.models.ResNetImageClassifier(
        backbone=KERAS_HUB["ResNet"](),
        num_classes=3,
        preprocessor=keras_hub.models.ResNetImageClassifierPreprocessor(converter),
    )
    return model, np.random.default_rng(0).uniform(0, 255, (6, 40, 40, 3)).astype("float32")


USER_MODELS: dict[str, Callable[[], Example]] = {
    "own layer without get_config": own_layer,
    "list of blocks": list_of_blocks,
    "dictionary of layers": dictionary_of_layers,
    "subclassed model": subclassed,
    "Sequential built by a call": built_by_a_call,
    "siamese": siamese,
    "GAN, generator": generator,
    "GAN, discriminator": discriminator,
    "U-Net": u_net,
    "preprocessing inside": preprocessing_inside,
    "nested models": nested,
    "TimeDistributed(cnn)": time_distributed,
    "stateful RNN": stateful,
    "shared BN": shared,
    "masked text": masked_text,
    "detector with two outputs": detector,
    "BN along axis 1": channels_of_dense_blocks,
    "int8": int8,
    "LoRA": lora,
    "mixed_float16": sixteen_bits,
    "reloaded from .keras": reloaded_keras,
    "reloaded from .h5": reloaded_h5,
    "KerasHub task with preprocessor": keras_hub_task,
}
