"""The report on one BN layer, with its problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

# A channel is dead if its output varies by less than this however its input varies, exploding if it
# multiplies its input by more than that. Float32 keeps 7 digits: beyond 1e3 the noise of the input's last
# digits shows.
DEAD, EXPLODING = 1e-4, 1e3
# The statistics do not fit the data if, in the typical (median) channel, the mean is off by more than this
# many deviations or the variance by more than this factor.
MEAN_OFF, VARIANCE_OFF = 0.5, 2.0


@dataclass(frozen=True)
class DataReport:
    """The inputs and outputs of a BN layer on data, with all earlier layers in inference mode.

    Attributes:
        count: Number of values per channel.
        mean: Mean of the inputs, `(channels,)`.
        variance: Biased variance of the inputs, `(channels,)`.
        before: 15th, 50th and 85th percentile of the inputs, `(3, channels)`, from a sample of one batch.
        after: The same percentiles of the outputs at inference.
    """

    count: int
    mean: Vector
    variance: Vector
    before: Vector
    after: Vector


@dataclass(frozen=True)
class LayerReport:
    """One BN layer.

    Attributes:
        layer: Path of the layer, such as `backbone/bn1`.
        kind: Class of the layer.
        shape: Shape of the inputs.
        axis, momentum, epsilon, trainable: Configuration of the layer. Momentum None means the cumulative
            average.
        gamma, beta, mean, variance: Weights of the layer, `(channels,)`. A layer without gamma or beta has
            ones or zeros here.
        in_training: True if the layer is called with training=True, and so normalizes by the batch at
            inference too.
        untouched: True if the moving statistics still have their initial values.
        fold: The layer into which `keras_bn.fold` would fold it, or the reason why it cannot be folded.
        unseen: The reason why it was not observed on the data: it is never called, or its inputs cannot be
            observed.
        data: Inputs and outputs on data. None without data.
    """

    layer: str
    kind: str
    shape: tuple[int | None, ...]
    axis: int
    momentum: float | None
    epsilon: float
    trainable: bool
    gamma: Vector
    beta: Vector
    mean: Vector
    variance: Vector
    in_training: bool
    untouched: bool
    fold: str
    data: DataReport | None = None
    unseen: str = ""

    @property
    def scale(self) -> Vector:
        """The factor of each channel at inference: gamma / sqrt(variance + epsilon)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.gamma / np.sqrt(self.variance + self.epsilon)

    @property
    def dead(self) -> list[int]:
        """Channels whose output hardly varies: gamma is near zero, or the variance is far below epsilon."""
        with np.errstate(invalid="ignore"):
            return np.flatnonzero(np.abs(self.scale) * np.sqrt(self.variance) < DEAD).tolist()

    @property
    def exploding(self) -> list[int]:
        """Channels that multiply their input by more than a thousand."""
        return np.flatnonzero(np.abs(self.scale) > EXPLODING).tolist()

    @property
    def mean_shift(self) -> Vector | None:
        """Distance of the moving mean from the mean of the data, in deviations of the data, `(channels,)`."""
        if self.data is None:
            return None
        return np.abs(self.mean - self.data.mean) / np.sqrt(self.data.variance + self.epsilon)

    @property
    def variance_ratio(self) -> Vector | None:
        """Moving variance divided by the variance of the data, with epsilon added to both, `(channels,)`."""
        if self.data is None:
            return None
        return (self.variance + self.epsilon) / (self.data.variance + self.epsilon)

    @property
    def problems(self) -> list[str]:
        """Problems that must be fixed before the model is deployed, a phrase each."""
        broken = [
            name
            for name in ("gamma", "beta", "mean", "variance")
            if not np.isfinite(getattr(self, name)).all()
        ]
        if broken:
            return [f"NaN or infinity in {', '.join(broken)}"]
        found = []
        if self.in_training:
            found.append("called with training=True")
        if (self.variance < 0).any():
            found.append("negative variance")
        if self.untouched and "never called" not in self.unseen:
            found.append("statistics never updated")
        if len(self.dead) == len(self.gamma):
            found.append("all channels dead")
        if self.exploding:
            found.append(f"{len(self.exploding)} exploding channel(s)")
        if self.mean_shift is not None and self.variance_ratio is not None:
            shift = np.median(self.mean_shift)
            factor = np.exp(np.median(np.abs(np.log(self.variance_ratio))))
            if shift > MEAN_OFF:
                found.append(f"means off by {shift:.2g} deviations")
            if factor > VARIANCE_OFF:
                digits = ",.0f" if factor >= 10 else ".2g"
                found.append(f"variances off by a factor of {factor:{digits}}")
        return found

    @property
    def warnings(self) -> list[str]:
        """Findings that are worth checking, a phrase each."""
        found = [self.unseen] if self.unseen else []
        if 0 < len(self.dead) < len(self.gamma):
            found.append(f"{len(self.dead)} dead channel(s)")
        if self.data is not None and (constant := int((self.data.variance == 0).sum())):
            found.append(f"{constant} channel(s) constant on the data")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values. A weight is given by its smallest, median and largest value."""
        result: dict[str, Any] = {
            "layer": self.layer,
            "kind": self.kind,
            "shape": list(self.shape),
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "trainable": self.trainable,
            **{name: _summary(getattr(self, name)) for name in ("gamma", "beta", "mean", "variance")},
            "dead_channels": self.dead,
            "exploding_channels": self.exploding,
            "statistics_updated": not self.untouched,
            "fold": self.fold,
            "not_observed": self.unseen,
            "problems": self.problems,
            "warnings": self.warnings,
        }
        if self.data is not None and self.mean_shift is not None and self.variance_ratio is not None:
            result["data"] = {
                "count": self.data.count,
                "mean_shift": _summary(self.mean_shift),
                "variance_ratio": _summary(self.variance_ratio),
            }
        return result

    def cells(self, with_data: bool) -> list[str]:
        """The cells of the layer's row in a table, except its status. `columns` gives their names."""
        cells = [
            self.layer,
            "x".join("?" if n is None else str(n) for n in self.shape[1:]),
            "cumulative" if self.momentum is None else f"{self.momentum:g}",
            f"{self.epsilon:g}",
            *(_span(getattr(self, name)) for name in ("gamma", "beta", "mean", "variance")),
        ]
        if with_data and self.mean_shift is not None and self.variance_ratio is not None:
            shift = self.mean_shift
            cells += [f"{np.median(shift):.2g} (<= {shift.max():.2g})", _span(self.variance_ratio)]
        elif with_data:
            cells += ["", ""]
        return [*cells, self.fold]


def columns(with_data: bool) -> list[str]:
    """The names of the cells that `LayerReport.cells` returns."""
    head = ["layer", "shape", "momentum", "epsilon", "gamma", "beta", "mean", "variance"]
    return [*head, *(["mean off", "variance off"] if with_data else []), "fold"]


def _span(values: Vector) -> str:
    return f"{values.min():.2g}..{values.max():.2g}"


def _summary(values: Vector) -> dict[str, float | None]:
    parts = {"min": values.min(), "median": np.median(values), "max": values.max()}
    return {name: float(value) if np.isfinite(value) else None for name, value in parts.items()}
