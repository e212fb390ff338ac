"""The layer beside Keras's and the backend's own operation, on the backend that Keras runs on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import keras
import numpy as np

import keras_bn
from benchmarks.timing import Factories, machine, ratio_row, rebuilt, table

SHAPES = [(32, 56, 56, 64), (32, 14, 14, 512), (256, 1024), (32, 512)]
OURS, KERAS, FUSED, EMPTY = "keras_bn", "keras", "fused kernel", "empty layer"
AFTER, BEFORE, TORCH = "after", "before", "torch.nn.BatchNorm2d"
TITLES = {True: "One training step, forward and backward", False: "Inference"}
_COLUMNS = (
    "`fused kernel` is the operation of the backend with its gradient and no layer around it. "
    "`empty layer` is a Keras layer that returns its input."
)

Run = Callable[[], object]


def main(device: str, seconds: float, tables: Sequence[str], dtypes: Sequence[str]) -> None:
    backend = keras.backend.backend()
    with _placed_on(device):
        print(f"{machine()}; {backend} on {device}\n")
        for training in (True, False):
            if ("training" if training else "inference") in tables:
                for dtype in dtypes:
                    print(f"### {TITLES[training]}, {dtype}\n\n{_COLUMNS}\n")
                    _print(_rows(dtype, training), [OURS, KERAS, FUSED, EMPTY], seconds)
        if "networks" in tables:
            print("### A training step of a whole network before and after `keras_bn.convert`\n")
            print("96x96, batch 16, SGD.\n")
            columns = [AFTER, BEFORE] + ([TORCH] if backend == "torch" else [])
            _print(
                [(name, _network(name)) for name in ("MobileNetV2", "ResNet50")],
                columns,
                8 * seconds,
                builds=1,
            )


def _rows(dtype: str, training: bool) -> list[tuple[str, Factories]]:
    return [
        (_name(shape, axis), _candidates(shape, axis, dtype, training))
        for shape in SHAPES
        for axis in ((-1, 1) if len(shape) == 4 else (-1,))
    ]


def _print(rows: list[tuple[str, Factories]], columns: list[str], seconds: float, builds: int = 3) -> None:
    header = ["", f"{columns[0]}, ms", *(f"{name} / {columns[0]}" for name in columns[1:])]
    timed = [(name, rebuilt(factories, builds, seconds)) for name, factories in rows]
    print(table(header, [ratio_row(name, times, columns, columns[0]) for name, times in timed]))
    print(flush=True)


def _name(shape: tuple[int, ...], axis: int) -> str:
    return "x".join(map(str, shape)) + (", channels first" if axis == 1 else "")


def _arranged(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape if axis == -1 else (shape[0], shape[-1], *shape[1:-1])


def _candidates(shape: tuple[int, ...], axis: int, dtype: str, training: bool) -> Factories:
    arranged = _arranged(shape, axis)
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    kinds: dict[str, Callable[..., keras.Layer]] = {
        OURS: partial(keras_bn.BatchNormalization, axis=axis),
        KERAS: partial(keras.layers.BatchNormalization, axis=axis),
        EMPTY: Empty,
    }
    run = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]
    found: dict[str, Callable[[], Run]] = {}
    for name, kind in kinds.items():
        found[name] = partial(run, partial(kind, dtype=policy), arranged, dtype, training)
    if training and keras.backend.backend() == "torch":
        found[FUSED] = partial(_torch_fused, arranged, axis, dtype)
    if training and keras.backend.backend() == "tensorflow" and axis == -1:
        found[FUSED] = partial(_tensorflow_fused, arranged, dtype)
    return found


class Empty(keras.layers.Layer):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.supports_masking = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return inputs


class TorchNormalization(keras.layers.Layer):
    """PyTorch's own layer inside a model of Keras, on the same memory."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.original = original

    def build(self, shape: tuple[int | None, ...]) -> None:
        import torch

        momentum = 1 - self.original.momentum
        self.normalization = torch.nn.BatchNorm2d(shape[-1], self.original.epsilon, momentum)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return self.normalization(inputs.movedim(-1, 1), training=training).movedim(1, -1)


@lru_cache(maxsize=1)
def _values(shape: tuple[int, ...], dtype: str) -> list[Any]:
    """Inputs and the gradient of the outputs.

    They are the same for all candidates, which may differ by less than where tensors lie in memory makes up.
    """
    rng = np.random.default_rng(0)
    return [keras.ops.cast(rng.normal(size=shape).astype("float32"), dtype) for _ in range(2)]


def _tensorflow(make: Callable[[], Any], shape: tuple[int, ...], dtype: str, training: bool) -> Run:
    layer = make()
    layer.build(shape)
    weights = [w.value for w in layer.trainable_variables]
    return _tensorflow_step(partial(layer, training=training), weights, _values(shape, dtype), training)


def _tensorflow_fused(shape: tuple[int, ...], dtype: str) -> Run:
    import tensorflow as tf

    gamma, beta = tf.Variable(tf.ones(shape[-1])), tf.Variable(tf.zeros(shape[-1]))
    image = shape if len(shape) == 4 else (shape[0], 1, 1, shape[1])

    def normalize(x: Any) -> Any:
        return tf.reshape(tf.compat.v1.nn.fused_batch_norm(tf.reshape(x, image), gamma, beta)[0], shape)

    return _tensorflow_step(normalize, [gamma, beta], _values(shape, dtype), True)


def _tensorflow_step(normalize: Any, weights: list[Any], values: list[Any], training: bool) -> Run:
    import tensorflow as tf

    @tf.function
    def step(x: Any, dy: Any) -> Any:
        if not training:
            return normalize(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = normalize(x)
        return y, tape.gradient(y, [x, *weights], dy)

    # Reading a result waits for an accelerator.
    return lambda: [np.asarray(tf.reshape(v, [-1])[:1]) for v in tf.nest.flatten(step(*values))[:1]]


def _jax(make: Callable[[], Any], shape: tuple[int, ...], dtype: str, training: bool) -> Run:
    import jax

    layer = make()
    layer.build(shape)
    weights, state = (
        [w.value for w in v] for v in (layer.trainable_variables, layer.non_trainable_variables)
    )
    x, dy = _values(shape, dtype)

    @jax.jit
    def step(weights: Any, state: Any, x: Any, dy: Any) -> Any:
        def run(weights: Any, x: Any) -> Any:
            return layer.stateless_call(weights, state, x, training=training)

        if not training:
            return run(weights, x)
        y, pull, new = jax.vjp(run, weights, x, has_aux=True)
        return y, new, pull(dy)

    return lambda: jax.block_until_ready(step(weights, state, x, dy))


def _torch(make: Callable[[], Any], shape: tuple[int, ...], dtype: str, training: bool) -> Run:
    layer = make()
    layer.build(shape)
    weights = [w.value for w in layer.trainable_variables]
    return _torch_step(partial(layer, training=training), weights, _values(shape, dtype), training)


def _torch_fused(shape: tuple[int, ...], axis: int, dtype: str) -> Run:
    import torch

    x, dy = _values(shape, dtype)
    if len(shape) == 4 and axis == -1:  # the same memory, with torch's order of axes
        x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
    kind = torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d
    layer = kind(x.shape[1], device=x.device)
    return _torch_step(layer, list(layer.parameters()), [x, dy], True)


def _torch_step(normalize: Any, weights: list[Any], values: list[Any], training: bool) -> Run:
    import torch

    x, dy = values[0].requires_grad_(training), values[1]

    def step() -> Any:
        if training:
            results = torch.autograd.grad(normalize(x), [x, *weights], dy)
        else:
            with torch.no_grad():
                results = normalize(x)
        if dy.is_cuda:
            torch.cuda.synchronize()
        return results

    return step


def _network(name: str) -> Factories:
    before = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classes=10)
    after = keras_bn.convert(before).model
    x = np.random.default_rng(0).normal(size=(16, 96, 96, 3)).astype("float32")
    labels = np.eye(10, dtype="float32")[np.arange(16) % 10]

    def step(model: keras.Model) -> Run:
        model.compile(keras.optimizers.SGD(1e-3), "categorical_crossentropy")
        return lambda: model.train_on_batch(x, labels)

    networks = {AFTER: after, BEFORE: before}
    if keras.backend.backend() == "torch":
        networks[TORCH] = keras.models.clone_model(before, clone_function=_with_torch_normalization)
    return {key: partial(step, network) for key, network in networks.items()}


def _with_torch_normalization(layer: Any) -> Any:
    if isinstance(layer, keras.layers.BatchNormalization):
        return TorchNormalization(layer)
    return layer.__class__.from_config(layer.get_config())


def _placed_on(device: str) -> contextlib.AbstractContextManager[Any]:
    """Where tensors live; PyTorch's device is set before Keras is imported."""
    if keras.backend.backend() == "torch":
        return contextlib.nullcontext()
    return keras.device(f"{device}:0")
