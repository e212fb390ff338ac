"""A callback that watches the statistics of the BN layers while a model trains."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_bn._keras import flatten_layers
from keras_bn.errors import KerasBNError
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.renorm import BatchRenormalization

Array = NDArray[np.float64]


def distance(mean: Array, variance: Array, other_mean: Array, other_variance: Array, epsilon: float) -> Array:
    """The distance between two sets of statistics, per channel.

    It is the 2-Wasserstein distance of the two normal distributions, sqrt((mean - mean')² + (s - s')²) with
    s = sqrt(variance + epsilon), in units of the smaller s.

    >>> distance(np.array([1.0]), np.array([4.0]), np.array([4.0]), np.array([64.0]), epsilon=0.0)
    array([3.35410197])
    """
    s, other_s = np.sqrt(variance + epsilon), np.sqrt(other_variance + epsilon)
    return np.hypot(mean - other_mean, s - other_s) / np.minimum(s, other_s)


@dataclass
class _Watched:
    """One layer, its moving statistics before the current batch, and the statistics of the batches so far."""

    layer: Any
    name: str
    before: tuple[Array, Array, int] | None = None
    means: list[Array] = field(default_factory=list)
    variances: list[Array] = field(default_factory=list)

    def moving(self) -> tuple[Array, Array, int]:
        layer = self.layer
        seen = getattr(layer, "batches_seen", None)
        return (
            np.asarray(keras.ops.convert_to_numpy(layer.moving_mean), np.float64),
            np.asarray(keras.ops.convert_to_numpy(layer.moving_variance), np.float64),
            0 if seen is None else int(np.max(keras.ops.convert_to_numpy(seen))),
        )

    def averages_deviation(self) -> bool:
        return isinstance(self.layer, BatchRenormalization) or getattr(self.layer, "renorm", False)

    def take(self, batches: int) -> None:
        """Solve the update of the moving averages for the statistics of the batch."""
        if self.before is None:
            return
        mean, variance, seen = self.before
        new_mean, new_variance, _ = self.moving()
        momentum = self.layer.momentum
        kept = seen / (seen + batches) if momentum is None else momentum**batches

        def added(old: Array, new: Array) -> Array:
            return (new - kept * old) / (1 - kept)

        self.means.append(added(mean, new_mean))
        if self.averages_deviation():
            epsilon = self.layer.epsilon
            deviation = added(np.sqrt(variance + epsilon), np.sqrt(new_variance + epsilon))
            self.variances.append(np.square(deviation) - epsilon)
        else:
            self.variances.append(added(variance, new_variance))

    def summary(self) -> dict[str, Array]:
        moving_mean, moving_variance, _ = self.moving()
        batch_mean = np.mean(self.means, axis=0)
        batch_variance = np.maximum(np.mean(self.variances, axis=0), 0)
        gamma = getattr(self.layer, "gamma", None)
        constant = batch_variance <= 1e-3 * self.layer.epsilon
        if gamma is not None:
            constant = constant | (np.abs(keras.ops.convert_to_numpy(gamma)) < 1e-6)
        scatter = np.square(np.diff(self.means, axis=0)) / (2 * batch_variance + self.layer.epsilon)
        return {
            "batch_mean": batch_mean,
            "batch_variance": batch_variance,
            "moving_mean": moving_mean,
            "moving_variance": moving_variance,
            "distance": distance(
                batch_mean, batch_variance, moving_mean, moving_variance, self.layer.epsilon
            ),
            "effective_count": 1 / np.maximum(np.mean(scatter), 1e-9) if scatter.size else np.array(np.inf),
            "dead_channels": np.array(np.sum(constant)),
        }


class BatchNormalizationMonitor(keras.callbacks.Callback):
    """Watches the statistics of the BN layers during training, and warns if they are unhealthy at its end.

    The statistics of a batch are recovered from the change of the moving averages, which costs no computation
    in the model and works for Keras's layer and ours, variants included. Two consecutive batches are sampled
    at the beginning of an epoch, and then two of every `every`.

    At the end of an epoch three figures are added to its `logs`, where `History`, `CSVLogger`, `TensorBoard`
    and the callbacks of Weights & Biases find them. Place this callback before those.

    - `bn_distance`: the largest median distance of a layer (see `distance`).
    - `bn_effective_count`: the smallest effective count of a layer. This is the number of independent values
      whose mean would vary as much as the means of consecutive batches do. Neighboring pixels are not
      independent, so it is below the number of values.
    - `bn_dead_channels`: the number of channels whose input is constant (a variance below a thousandth of
      epsilon) or whose gamma is 0.

    With `log_dir`, TensorBoard shows for each layer, under `<layer>/`, the histograms batch_mean,
    batch_variance, moving_mean, moving_variance and distance, and the scalars median_distance, dead_channels
    and effective_count.

    At the end of training, a single warning names the layers that had one of these problems in the last
    epoch:

    - The median distance is above `far`, so inference differs from training. Train longer, lower the momentum
      or recalibrate.
    - The effective count is below `few`. Use larger batches, `synchronized` or `BatchRenormalization`.
    - A quarter of the channels or more are dead.

    Args:
        log_dir: Folder for TensorBoard. If None, nothing is written.
        every: Number of batches from one pair to the next, at least 2.
        far: Distance above which to warn.
        few: Effective count below which to warn.

    Raises:
        KerasBNError: If every is below 2; if a log_dir is given and TensorBoard is not installed; or, when
            training starts, if the model has no BN layer that trains.

    >>> model = keras.Sequential([keras.Input((1,)), keras_bn.BatchNormalization(name="bn", momentum=0.999)])
    >>> model.compile("sgd", "mse")
    >>> x = np.linspace(1e3, 2e3, 64)[:, None]
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     history = model.fit(x, 0 * x, callbacks=[BatchNormalizationMonitor()], verbose=0)
    >>> print(caught[-1].message)
    Inference will differ from training: the moving statistics of 1 of 1 layers are far ... 'bn'...
    >>> sorted(name for name in history.history if name.startswith("bn_"))
    ['bn_dead_channels', 'bn_distance', 'bn_effective_count']
    """

    def __init__(
        self, log_dir: str | None = None, every: int = 50, far: float = 0.5, few: float = 8.0
    ) -> None:
        super().__init__()
        if every < 2:
            raise KerasBNError(
                f"every must be at least 2, since batches are sampled in pairs, but it is {every}."
            )
        self.every = every
        self.far = far
        self.few = few
        self._writer = None if log_dir is None else _file_writer(log_dir)
        self._watched: list[_Watched] = []
        self._last: dict[str, dict[str, Array]] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the BN layers."""
        kinds = (keras.layers.BatchNormalization, BatchNormalization)
        layers = [layer for layer in flatten_layers(self.model) if isinstance(layer, kinds)]
        self._watched = [
            _Watched(layer, layer.name)
            for layer in layers
            if layer.trainable and not getattr(layer, "frozen_statistics", False)
        ]
        if not self._watched:
            raise KerasBNError(
                f"Model {self.model.name!r} has no batch normalization layer whose statistics train, so "
                f"there is nothing to monitor; leave the callback out."
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Forget the epoch before."""
        for watched in self._watched:
            watched.before, watched.means, watched.variances = None, [], []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Remember the moving statistics if this batch is sampled."""
        if self._sampled(batch):
            self._synchronize()
            for watched in self._watched:
                watched.before = watched.moving()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Recover the batch's statistics."""
        if self._sampled(batch):
            self._synchronize()
            for watched in self._watched:
                watched.take(getattr(self.model, "steps_per_execution", 1))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the figures of the epoch."""
        self._last = {watched.name: watched.summary() for watched in self._watched if watched.means}
        if self._writer is not None:
            for name, summary in self._last.items():
                _write(self._writer, name, summary, epoch)
        if logs is not None:
            # The same names in every epoch, as CSVLogger needs them.
            figures = [_figures(summary) for summary in self._last.values()]
            logs["bn_distance"] = max((gap for gap, _, _ in figures), default=float("nan"))
            logs["bn_effective_count"] = min((count for _, count, _ in figures), default=float("nan"))
            logs["bn_dead_channels"] = sum(dead for _, _, dead in figures)

    def on_train_end(self, logs: Any = None) -> None:
        """Warn of problems in the last epoch, and flush the log."""
        if self._writer is not None:
            self._writer.flush()
        message = self._judged()
        if message:
            warnings.warn(message, stacklevel=2)

    def _sampled(self, batch: int) -> bool:
        # With several steps per execution Keras calls back once for all of them.
        return (batch // getattr(self.model, "steps_per_execution", 1)) % self.every < 2

    def _synchronize(self) -> None:
        # In JAX the state of training lives outside the variables until it is asked for.
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()

    def _judged(self) -> str:
        """The problems in one line, or an empty string."""
        figures = {name: _figures(summary) for name, summary in self._last.items()}
        channels = {name: summary["batch_mean"].size for name, summary in self._last.items()}
        far = {name: gap for name, (gap, _, _) in figures.items() if gap > self.far}
        few = {name: count for name, (_, count, _) in figures.items() if count < self.few}
        dead = {name: number for name, (_, _, number) in figures.items() if 4 * number >= channels[name]}
        of = f"of {len(figures)} layers"
        found = []
        if far:
            worst = max(far, key=lambda name: far[name])
            found.append(
                f"Inference will differ from training: the moving statistics of {len(far)} {of} are far from "
                f"those of the batches (worst: {worst!r}, {far[worst]:.1f} deviations). Train longer, lower "
                f"the momentum or recalibrate."
            )
        if few:
            worst = min(few, key=lambda name: few[name])
            found.append(
                f"In {len(few)} {of} a batch is worth fewer than {self.few:g} independent values per channel "
                f"(worst: {worst!r}, {few[worst]:.1f}). Use larger batches, synchronized=True or "
                f"BatchRenormalization."
            )
        if dead:
            worst = max(dead, key=lambda name: dead[name] / channels[name])
            found.append(
                f"In {len(dead)} {of} a quarter of the channels or more have a constant input or a gamma of "
                f"0 (worst: {worst!r}, {dead[worst]} of {channels[worst]})."
            )
        return " ".join(found)


def _figures(summary: dict[str, Array]) -> tuple[float, float, int]:
    """The median distance, the effective count and the number of dead channels of a layer."""
    return (
        float(np.median(summary["distance"])),
        float(summary["effective_count"]),
        int(summary["dead_channels"]),
    )


def _file_writer(log_dir: str) -> Any:
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise KerasBNError(
            "Writing to a log_dir needs TensorBoard: pip install tensorboard, or leave log_dir out."
        ) from error
    import tensorflow as tf

    return tf.summary.create_file_writer(str(log_dir))


def _write(writer: Any, name: str, summary: dict[str, Array], epoch: int) -> None:
    import tensorflow as tf

    with writer.as_default(step=epoch):
        for tag, values in summary.items():
            if values.ndim:
                tf.summary.histogram(f"{name}/{tag}", values)
            else:
                tf.summary.scalar(f"{name}/{tag}", values)
        tf.summary.scalar(f"{name}/median_distance", np.median(summary["distance"]))
