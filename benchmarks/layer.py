"""The layer beside Keras's, tf_keras's and torch's: training steps, inference, memory, whole networks.

`python -m benchmarks.layer` prints Markdown. All candidates of a row take turns; every number but the first
is a ratio, so that it does not depend on the machine.
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_bn
from benchmarks.timing import interleaved, machine, pin_threads, ratio_row, table

SHAPES = [(32, 56, 56, 64), (32, 14, 14, 512), (16, 112, 112, 64), (256, 1024), (32, 512)]
OURS, KERAS, TF_KERAS, TORCH, FLOOR = "keras_bn", "keras", "tf_keras", "torch", "8 streams"
MEMORY_SHAPE = (16, 112, 112, 64)
_LAYOUTS = [(shape, axis) for axis in (-1, 1) for shape in SHAPES if axis == -1 or len(shape) == 4]

Run = Callable[[], object]


def main() -> None:
    pin_threads()
    tf.get_logger().setLevel("ERROR")  # of retracing: every row traces anew
    print(f"{machine()}\n")
    columns = [OURS, KERAS, TF_KERAS, TORCH, FLOOR]
    _section(
        "One training step of the layer, forward and backward, float32",
        "`8 streams` is four copies of the tensor by one thread: what the step must read and write. "
        "Channels-first rows are the same tensors with the channels on axis 1.",
        columns,
        [(_name(shape, axis), _training(shape, axis)) for shape, axis in _LAYOUTS],
    )
    _section(
        "The same under `jit_compile=True`",
        "",
        [OURS, KERAS],
        [
            (
                _name(shape, axis),
                {
                    kind: _step(_LAYERS[kind](axis=axis), _arranged(shape, axis), compiled=True)
                    for kind in (OURS, KERAS)
                },
            )
            for shape, axis in _LAYOUTS
        ],
    )
    _section(
        "Inference, float32",
        "",
        [OURS, KERAS],
        [(_name(shape, axis), _inference(shape, axis)) for axis in (-1, 1) for shape in SHAPES[:2]]
        + [(_name(SHAPES[3], -1), _inference(SHAPES[3], -1))],
    )
    _section(
        "What masks, mixed precision and the variants cost in a training step",
        f"Inputs of shape {SHAPES[1]}; the mask, of shape {SHAPES[1][:3]}, keeps about half.",
        [OURS, *_VARIANTS],
        [("", _variants(SHAPES[1]))],
    )
    _section(
        "A training step of a whole network before and after `keras_bn.convert`",
        "96x96, batch 16, SGD.",
        ["after", "before"],
        [(name, _network(name)) for name in ("MobileNetV2", "ResNet50")],
    )
    print(f"### Peak memory of a training step, {_name(MEMORY_SHAPE, -1)}\n")
    print("Growth of the process, the two inputs and the two results included, in tensors of that shape.\n")
    print(table(list(_LAYERS), [[f"{_peak_in_a_process(kind):.1f}" for kind in _LAYERS]]))


def _section(title: str, note: str, columns: list[str], rows: list[tuple[str, dict[str, Run]]]) -> None:
    print(f"### {title}\n")
    if note:
        print(f"{note}\n")
    header = ["", f"{columns[0]}, ms", *(f"{name} / {columns[0]}" for name in columns[1:])]
    seconds = [(name, interleaved(runs, least_seconds=1.0)) for name, runs in rows]
    print(table(header, [ratio_row(name, times, columns, columns[0]) for name, times in seconds]))
    print(flush=True)


def _name(shape: tuple[int, ...], axis: int) -> str:
    return "x".join(map(str, _arranged(shape, axis))) + (", channels first" if axis == 1 else "")


def _arranged(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape if axis == -1 else (shape[0], shape[-1], *shape[1:-1])


def _tf_keras_layer(**arguments: Any) -> Any:
    import tf_keras

    return tf_keras.layers.BatchNormalization(**arguments)


_LAYERS: dict[str, Callable[..., Any]] = {
    OURS: keras_bn.BatchNormalization,
    KERAS: keras.layers.BatchNormalization,
    TF_KERAS: _tf_keras_layer,
}


def _step(
    layer: Any, shape: tuple[int, ...], compiled: bool = False, mask: Any = None, dtype: str = "float32"
) -> Run:
    """Outputs and all gradients, in a graph."""
    x, dy = (tf.cast(tf.random.normal(shape), dtype) for _ in range(2))
    layer.build(shape)
    weights = [w if isinstance(w, tf.Variable) else w.value for w in layer.trainable_variables]

    @tf.function(jit_compile=compiled)
    def step(x: tf.Tensor, dy: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True) if mask is None else layer(x, training=True, mask=mask)
        return y, tape.gradient(y, [x, *weights], dy)

    return lambda: step(x, dy)


def _training(shape: tuple[int, ...], axis: int) -> dict[str, Run]:
    arranged = _arranged(shape, axis)
    runs = {kind: _step(layer(axis=axis), arranged) for kind, layer in _LAYERS.items()}
    source, target = np.ones(shape, "float32"), np.empty(shape, "float32")

    def copies() -> None:
        for _ in range(4):
            np.copyto(target, source)

    return {**runs, TORCH: _torch_step(shape, axis), FLOOR: copies}


def _torch_step(shape: tuple[int, ...], axis: int) -> Run:
    import torch

    layer = (torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d)(shape[-1])
    x, dy = (torch.randn(_arranged(shape, axis)) for _ in range(2))
    if len(shape) == 4 and axis == -1:  # the same memory, with torch's order of axes
        x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)
    x.requires_grad_()

    def step() -> None:
        x.grad = layer.weight.grad = layer.bias.grad = None
        layer(x).backward(dy)

    return step


def _inference(shape: tuple[int, ...], axis: int) -> dict[str, Run]:
    x = tf.random.normal(_arranged(shape, axis))
    runs = {}
    for kind in (OURS, KERAS):
        layer = _LAYERS[kind](axis=axis)
        layer.build(x.shape)
        function = tf.function(layer)
        runs[kind] = lambda function=function: function(x)
    return runs


_VARIANTS = ["mask", "keras, mask", "mixed_bfloat16", "keras, mixed_bfloat16", "renorm", "ghosts of 8"]


def _variants(shape: tuple[int, ...]) -> dict[str, Run]:
    mask = tf.constant(np.random.default_rng(0).random(shape[:3]) < 0.5)
    ours, theirs = keras_bn.BatchNormalization, keras.layers.BatchNormalization
    half = {"dtype": "mixed_bfloat16"}
    return {
        OURS: _step(ours(), shape),
        "mask": _step(ours(), shape, mask=mask),
        "keras, mask": _step(theirs(), shape, mask=mask),
        "mixed_bfloat16": _step(ours(**half), shape, dtype="bfloat16"),
        "keras, mixed_bfloat16": _step(theirs(**half), shape, dtype="bfloat16"),
        "renorm": _step(keras_bn.BatchRenormalization(), shape),
        "ghosts of 8": _step(keras_bn.GhostBatchNormalization(8), shape),
    }


def _network(name: str) -> dict[str, Run]:
    before = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classes=10)
    after = keras_bn.convert(before).model
    x, labels = tf.random.normal((16, 96, 96, 3)), tf.one_hot(tf.range(16) % 10, 10)

    def step(model: keras.Model) -> Run:
        model.compile(keras.optimizers.SGD(1e-3), "categorical_crossentropy")
        return lambda: model.train_on_batch(x, labels)

    return {"after": step(after), "before": step(before)}


def _peak_in_a_process(kind: str) -> float:
    """The peak, in a process of its own, since the kernel counts it for the whole life of one."""
    command = [sys.executable, "-m", "benchmarks.layer", "peak", kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak(kind: str) -> float:
    pin_threads()
    # The libraries' own buffers are allocated by a step that is too small to matter.
    _step(_LAYERS[kind](), (2, 8, 8, 64))()
    before = _status("VmRSS")
    run = _step(_LAYERS[kind](), MEMORY_SHAPE)
    for _ in range(5):
        results = run()
    del results
    # Not getrusage: its peak is inherited from the parent process.
    return (_status("VmHWM") - before) / (4 * np.prod(MEMORY_SHAPE))


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status; Linux only."""
    with open("/proc/self/status") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        print(_peak(sys.argv[2]))
    else:
        main()
