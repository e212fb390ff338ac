"""The layer beside Keras's, tf_keras's and torch's on TensorFlow: steps, inference, memory, whole networks.

`python -m benchmarks.layer` runs it where no backend is named, and prints Markdown. All candidates of a row
take turns. Every number but the first is a ratio, so that it does not depend on the machine.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_bn
from benchmarks.timing import Factories, machine, pin_threads, ratio_row, rebuilt, table

SHAPES = [(32, 56, 56, 64), (32, 14, 14, 512), (16, 112, 112, 64), (256, 1024), (32, 512)]
OURS, KERAS, TF_KERAS, TORCH = "keras_bn", "keras", "tf_keras", "torch"
BARE, CALL, FLOOR = "FusedBatchNormV3", "a call", "8 streams"
MEMORY_SHAPE = (16, 112, 112, 64)
_LAYOUTS = [(shape, axis) for axis in (-1, 1) for shape in SHAPES if axis == -1 or len(shape) == 4]
_WHAT_STANDS_BETWEEN = (
    "Channels-first rows are the same tensors with the channels on axis 1. What stands between the layer and "
    "nothing: `8 streams` is four copies of the tensor by one thread, all that a step must read and write; "
    "`a call` is a TensorFlow function that does nothing; `FusedBatchNormV3` is TensorFlow's operation with "
    "its gradient and no layer around it, for channels last. Channels first the step moves 14 streams: 2 for "
    "the moments, 2 for the outputs, 3 for the sums of the gradient and 7 for the gradient."
)

Run = Callable[[], object]


def main() -> None:
    pin_threads()
    tf.get_logger().setLevel("ERROR")  # of retracing: every row traces anew
    print(f"{machine()}\n")
    _section(
        "One training step of the layer, forward and backward, float32",
        _WHAT_STANDS_BETWEEN,
        [OURS, KERAS, TF_KERAS, TORCH, BARE, CALL, FLOOR],
        [(_name(shape, axis), _training(shape, axis)) for shape, axis in _LAYOUTS],
        builds=3,
    )
    _section(
        "The same where the size of the batch is not known, as in `fit`",
        "",
        list(_LAYERS),
        [
            (_name(shape, axis), _steps(_LAYERS, shape, axis, in_fit=True))
            for shape, axis in ((SHAPES[1], -1), (SHAPES[3], -1), (SHAPES[4], -1), (SHAPES[1], 1))
        ],
        builds=2,
    )
    _section(
        "The same under `jit_compile=True`",
        "",
        [OURS, KERAS],
        [(_name(shape, axis), _steps((OURS, KERAS), shape, axis, compiled=True)) for shape, axis in _LAYOUTS],
    )
    _section(
        "Inference, float32",
        "",
        [OURS, KERAS],
        [(_name(shape, axis), _inferences(shape, axis)) for axis in (-1, 1) for shape in SHAPES[:2]]
        + [(_name(SHAPES[3], -1), _inferences(SHAPES[3], -1))],
        builds=2,
    )
    for title, note, runs in (
        (
            "What a mask and mixed precision cost in a training step",
            f"Inputs of shape {SHAPES[1]}; the mask, of shape {SHAPES[1][:3]}, keeps about half.",
            _inputs_of_other_kinds(SHAPES[1]),
        ),
        ("The variants in a training step", f"Inputs of shape {SHAPES[1]}.", _variants(SHAPES[1])),
    ):
        _section(title, note, list(runs), [("", runs)], builds=2)
    _section(
        "A training step of a whole network before and after `keras_bn.convert`",
        "96x96, batch 16, SGD.",
        ["after", "before"],
        [(name, _network(name)) for name in ("MobileNetV2", "ResNet50")],
    )
    print(f"### Peak memory of a training step, {_name(MEMORY_SHAPE, -1)}\n")
    print("Growth of the process, the two inputs and the two results included, in tensors of that shape.\n")
    print(table(_PEAKS, [[f"{_peak_in_a_process(name):.1f}" for name in _PEAKS]]))


def _section(
    title: str, note: str, columns: list[str], rows: list[tuple[str, Factories]], builds: int = 1
) -> None:
    print(f"### {title}\n")
    if note:
        print(f"{note}\n")
    header = ["", f"{columns[0]}, ms", *(f"{name} / {columns[0]}" for name in columns[1:])]
    seconds = [(name, rebuilt(runs, builds, least_seconds=max(0.5, 1 / builds))) for name, runs in rows]
    print(table(header, [ratio_row(name, times, columns, columns[0]) for name, times in seconds]))
    print(flush=True)


def _name(shape: tuple[int, ...], axis: int) -> str:
    return "x".join(map(str, _arranged(shape, axis))) + (", channels first" if axis == 1 else "")


def _arranged(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape if axis == -1 else (shape[0], shape[-1], *shape[1:-1])


def _tf_keras_layer(**arguments: Any) -> Any:
    import tf_keras

    return tf_keras.layers.BatchNormalization(**arguments)


def _tf_keras_v1_layer(**arguments: Any) -> Any:
    # Its second interface hides virtual_batch_size.
    from tf_keras.src.layers.normalization.batch_normalization_v1 import BatchNormalization

    return BatchNormalization(**arguments)


_LAYERS: dict[str, Callable[..., Any]] = {
    OURS: keras_bn.BatchNormalization,
    KERAS: keras.layers.BatchNormalization,
    TF_KERAS: _tf_keras_layer,
}


def _step(
    layer: Callable[[], Any],
    shape: tuple[int, ...],
    mask: Any = None,
    dtype: str = "float32",
    compiled: bool = False,
    in_fit: bool = False,
) -> Run:
    """Outputs and all gradients, in a graph."""
    built = layer()
    built.build(shape)
    weights = [w if isinstance(w, tf.Variable) else w.value for w in built.trainable_variables]
    arguments = {"training": True} if mask is None else {"training": True, "mask": mask}
    return _differentiated(lambda x: built(x, **arguments), weights, shape, dtype, compiled, in_fit)


def _steps(kinds: Iterable[str], shape: tuple[int, ...], axis: int, **options: bool) -> Factories:
    arranged = _arranged(shape, axis)
    return {kind: partial(_step, partial(_LAYERS[kind], axis=axis), arranged, **options) for kind in kinds}


def _differentiated(
    normalize: Callable[[Any], Any],
    weights: list[tf.Variable],
    shape: tuple[int, ...],
    dtype: str = "float32",
    compiled: bool = False,
    in_fit: bool = False,
) -> Run:
    x, dy = (tf.cast(tf.random.normal(shape), dtype) for _ in range(2))
    known = tf.TensorSpec((None, *shape[1:]) if in_fit else shape, dtype)

    @tf.function(jit_compile=compiled, input_signature=[known, known])
    def step(x: tf.Tensor, dy: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = normalize(x)
        return y, tape.gradient(y, [x, *weights], dy)

    return lambda: step(x, dy)


def _bare_step(shape: tuple[int, ...]) -> Run:
    gamma, beta = tf.Variable(tf.ones(shape[-1])), tf.Variable(tf.zeros(shape[-1]))

    def normalize(x: tf.Tensor) -> tf.Tensor:
        image = tf.reshape(x, shape if len(shape) == 4 else (shape[0], 1, 1, shape[1]))
        return tf.reshape(tf.compat.v1.nn.fused_batch_norm(image, gamma, beta)[0], shape)

    return _differentiated(normalize, [gamma, beta], shape)


def _training(shape: tuple[int, ...], axis: int) -> Factories:
    bare = {BARE: partial(_bare_step, shape)} if axis == -1 else {}
    others = {TORCH: partial(_torch_step, shape, axis), CALL: _call, FLOOR: partial(_copies, shape)}
    return {**_steps(_LAYERS, shape, axis), **bare, **others}


def _call() -> Run:
    nothing = tf.function(lambda x, dy: (x, dy))
    x, dy = tf.zeros([]), tf.zeros([])
    return lambda: nothing(x, dy)


def _copies(shape: tuple[int, ...]) -> Run:
    source, target = np.ones(shape, "float32"), np.empty(shape, "float32")

    def copies() -> None:
        for _ in range(4):
            np.copyto(target, source)

    return copies


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


def _inferences(shape: tuple[int, ...], axis: int) -> Factories:
    def factory(kind: str) -> Run:
        x = tf.random.normal(_arranged(shape, axis))
        layer = _LAYERS[kind](axis=axis)
        layer.build(x.shape)
        function = tf.function(layer)
        return lambda: function(x)

    return {kind: partial(factory, kind) for kind in (OURS, KERAS)}


def _inputs_of_other_kinds(shape: tuple[int, ...]) -> Factories:
    mask = _half_mask(shape)
    ours, theirs = _LAYERS[OURS], _LAYERS[KERAS]
    half = {"dtype": "mixed_bfloat16"}
    return {
        OURS: partial(_step, ours, shape),
        "mask": partial(_step, ours, shape, mask=mask),
        "keras, mask": partial(_step, theirs, shape, mask=mask),
        "mixed_bfloat16": partial(_step, partial(ours, **half), shape, dtype="bfloat16"),
        "keras, mixed_bfloat16": partial(_step, partial(theirs, **half), shape, dtype="bfloat16"),
    }


def _variants(shape: tuple[int, ...]) -> Factories:
    ghosts = partial(_tf_keras_v1_layer, virtual_batch_size=8)
    return {
        OURS: partial(_step, _LAYERS[OURS], shape),
        "renorm": partial(_step, keras_bn.BatchRenormalization, shape),
        "keras, renorm": partial(_step, partial(_LAYERS[KERAS], renorm=True), shape),
        "ghosts of 8": partial(_step, partial(keras_bn.GhostBatchNormalization, 8), shape),
        "tf_keras, ghosts of 8": partial(_step, ghosts, shape),
    }


def _half_mask(shape: tuple[int, ...]) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).random(shape[:-1]) < 0.5)


def _network(name: str) -> Factories:
    before = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classes=10)
    after = keras_bn.convert(before).model
    x, labels = tf.random.normal((16, 96, 96, 3)), tf.one_hot(tf.range(16) % 10, 10)

    def step(model: keras.Model) -> Run:
        model.compile(keras.optimizers.SGD(1e-3), "categorical_crossentropy")
        return lambda: model.train_on_batch(x, labels)

    return {"after": partial(step, after), "before": partial(step, before)}


_PEAKS = [OURS, KERAS, TF_KERAS, f"{OURS}, mask", f"{KERAS}, mask"]


def _peak_in_a_process(name: str) -> float:
    """The peak, in a process of its own, since the kernel counts it for the whole life of one."""
    command = [sys.executable, "-m", "benchmarks.tensorflow_layer", "peak", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak(name: str) -> float:
    pin_threads()
    kind, masked = name.removesuffix(", mask"), name.endswith(", mask")

    def step(shape: tuple[int, ...]) -> Run:
        return _step(_LAYERS[kind], shape, mask=_half_mask(shape) if masked else None)

    # The libraries' own buffers are allocated by a step that is too small to matter.
    step((2, 8, 8, 64))()
    before = _status("VmRSS")
    run = step(MEMORY_SHAPE)
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
