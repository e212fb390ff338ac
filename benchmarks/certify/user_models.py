"""Models as people write them, each with inputs for `predict`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from benchmarks.certify.user_layers import (
    Autoencoder,
    Branches,
    Cell,
    Classifier,
    ConvBlock,
    Encoder,
    Named,
    OfTensorFlow,
    Residual,
    SometimesSkipped,
    SqueezeExcite,
    Stage,
    TwoInputs,
    WithLayerOfAnother,
)

Example = tuple[keras.Model, Any]


def _normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


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
    with _policy("mixed_float16"):
        stack = [keras.Input((8, 8, 3)), ConvBlock(4), layers.Conv2D(6, 3), layers.BatchNormalization()]
        stack += [layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(2, dtype="float32")]
        return keras.Sequential(stack), _normal(8, 8, 8, 3)


@contextmanager
def _policy(name: str) -> Iterator[None]:
    """Inside, layers are made with a dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


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


def squeeze_and_excite() -> Example:
    stack = [
        keras.Input((8, 8, 3)),
        ConvBlock(8),
        SqueezeExcite(),
        layers.DepthwiseConv2D(3),
        SqueezeExcite(),
    ]
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(2)]), _normal(6, 8, 8, 3)


def calls_of_tensorflow() -> Example:
    stack = [keras.Input((12, 12, 3)), OfTensorFlow(), layers.BatchNormalization(), layers.Flatten()]
    return keras.Sequential([*stack, layers.Dense(2)]), _normal(6, 12, 12, 3)


def cell_of_a_recurrent_layer() -> Example:
    stack = [keras.Input((5, 3)), layers.RNN(Cell(4)), layers.BatchNormalization(), layers.Dense(2)]
    return keras.Sequential(stack), _normal(8, 5, 3)


def autoencoder() -> Example:
    model, x = Autoencoder(), _normal(40, 12)
    model(x)
    return model, x


def two_inputs() -> Example:
    model, x = TwoInputs(), {"table": _normal(8, 3), "image": _normal(8, 8, 8, 3)}
    model(x)
    return model, x


def class_around_a_graph() -> Example:
    return Named(), _normal(40, 6)


def transfer() -> Example:
    """A frozen backbone called at inference, as the guide on transfer learning has it, and a new head."""
    backbone = keras.applications.MobileNet(
        weights=None, include_top=False, alpha=0.25, input_shape=(32, 32, 3)
    )
    backbone.trainable = False
    inputs = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(backbone(layers.Rescaling(1 / 127.5, -1)(inputs), training=False))
    x = layers.Dropout(0.2)(layers.BatchNormalization()(layers.Dense(8)(x)))
    x_data = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype("float32")
    return keras.Model(inputs, layers.Dense(2)(x)), x_data


def shared_blocks() -> Example:
    """A siamese network whose tower is made of layers of one's own."""
    tower, pool = [ConvBlock(4), Stage(4, 2)], layers.GlobalMaxPooling2D()

    def embed(x: Any) -> Any:
        for block in tower:
            x = block(x)
        return pool(x)

    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    model = keras.Model([left, right], layers.Subtract()([embed(left), embed(right)]))
    return model, [_normal(6, 8, 8, 3), _normal(6, 8, 8, 3, seed=1) * 2]


def text() -> Example:
    """Strings in, a vocabulary inside."""
    vectorize = layers.TextVectorization(output_sequence_length=6, vocabulary=["red", "green", "blue"])
    inputs = keras.Input((), dtype="string")
    x = layers.Conv1D(4, 3)(layers.Embedding(5, 4)(vectorize(inputs)))
    x = layers.GlobalMaxPooling1D()(layers.ReLU()(layers.BatchNormalization()(x)))
    words = np.array(["red green", "blue", "green green blue", "black red", "red", "blue blue"], dtype=object)
    return keras.Model(inputs, layers.Dense(2)(x)), words


def volumes() -> Example:
    stack = [keras.Input((6, 6, 6, 2)), layers.Conv3D(3, 3, padding="same"), layers.BatchNormalization()]
    stack += [layers.PReLU(), layers.Conv3DTranspose(2, 2), layers.BatchNormalization(scale=False)]
    return keras.Sequential([*stack, layers.AveragePooling3D(2), layers.Flatten(), layers.Dense(2)]), _normal(
        6, 6, 6, 6, 2
    )


def ends_in_bn() -> Example:
    """BN of the inputs in the place of a scaler, and BN as the output."""
    stack = [keras.Input((5,)), layers.BatchNormalization(center=False, scale=False), layers.Dense(4, "relu")]
    return keras.Sequential([*stack, layers.Dense(3), layers.BatchNormalization()]), _normal(40, 5) * 9 + 5


def bfloat16() -> Example:
    with _policy("bfloat16"):
        stack = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()]
        stack += [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.GlobalAveragePooling2D()]
        return keras.Sequential([*stack, layers.Dense(2)]), _normal(8, 8, 8, 3)


def gan() -> Example:
    """Both networks in one model, the discriminator frozen."""
    first, z = generator()
    second, _ = discriminator()
    second.trainable = False
    inputs = keras.Input((6,))
    return keras.Model(inputs, second(first(inputs))), z


def time_distributed_block() -> Example:
    stack = [
        keras.Input((3, 8, 8, 3)),
        layers.TimeDistributed(ConvBlock(4)),
        layers.TimeDistributed(Stage(4, 1)),
    ]
    stack += [
        layers.TimeDistributed(layers.GlobalMaxPooling2D()),
        layers.LSTM(4),
        layers.BatchNormalization(),
    ]
    return keras.Sequential([*stack, layers.Dense(2)]), _normal(4, 3, 8, 8, 3)


def stochastic_depth() -> Example:
    stack = [
        keras.Input((8, 8, 4)),
        SometimesSkipped(4),
        SometimesSkipped(4),
        layers.GlobalAveragePooling2D(),
    ]
    return keras.Sequential([*stack, layers.Dense(2)]), _normal(6, 8, 8, 4)


def transformer() -> Example:
    inputs = keras.Input((7, 4))
    x = Encoder(4)(Encoder(4)(layers.BatchNormalization()(inputs)))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x))), _normal(12, 7, 4)


def table() -> Example:
    """Columns by name, numbers and words, with their preprocessing."""
    rng = np.random.default_rng(0)
    columns = {
        "age": rng.uniform(20, 80, (40, 1)).astype("float32"),
        "town": rng.choice(["Rome", "Oslo"], (40, 1)).astype(object),
    }
    scale, words = (
        layers.Normalization(),
        layers.StringLookup(vocabulary=["Rome", "Oslo"], output_mode="one_hot"),
    )
    scale.adapt(columns["age"])
    inputs = {"age": keras.Input((1,), name="age"), "town": keras.Input((1,), dtype="string", name="town")}
    x = layers.Concatenate()([scale(inputs["age"]), words(inputs["town"])])
    for units in (8, 4):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(units)(x)))
    return keras.Model(inputs, layers.Dense(1)(x)), columns


def given_layer() -> Example:
    """A BN layer that two layers of one's own share."""
    bn = layers.BatchNormalization()
    stack = [
        keras.Input((4,)),
        WithLayerOfAnother(4, bn),
        layers.Dense(4),
        layers.ReLU(),
        WithLayerOfAnother(4, bn),
    ]
    return keras.Sequential([*stack, layers.Dense(2)]), _normal(40, 4)


def spectral() -> Example:
    stack = [
        keras.Input((8, 8, 3)),
        layers.SpectralNormalization(layers.Conv2D(4, 3)),
        layers.BatchNormalization(),
    ]
    stack += [layers.LeakyReLU(), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten()]
    return keras.Sequential([*stack, layers.Dense(1)]), _normal(6, 8, 8, 3)


def trained() -> Example:
    """Compiled and trained, with an average of the weights in the optimizer."""
    model, x = own_dense()
    model.compile(keras.optimizers.AdamW(1e-3, use_ema=True), "mse", metrics=["mae"], jit_compile=False)
    model.fit(x, x[:, :2], epochs=2, verbose=0)
    return model, x


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
    "squeeze and excite": squeeze_and_excite,
    "calls of TensorFlow": calls_of_tensorflow,
    "cell of a recurrent layer": cell_of_a_recurrent_layer,
    "autoencoder": autoencoder,
    "dictionary in, dictionary out": two_inputs,
    "class around a graph": class_around_a_graph,
    "transfer learning": transfer,
    "siamese, own layers": shared_blocks,
    "text": text,
    "volumes": volumes,
    "BN at both ends": ends_in_bn,
    "bfloat16": bfloat16,
    "GAN, both": gan,
    "TimeDistributed(own layer)": time_distributed_block,
    "stochastic depth": stochastic_depth,
    "transformer with BN": transformer,
    "table with words": table,
    "BN layer given to two layers": given_layer,
    "spectral normalization": spectral,
    "compiled and trained": trained,
}
