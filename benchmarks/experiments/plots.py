"""The style of every figure: one size, one palette that colour-blind readers can tell apart, no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from benchmarks.experiments.results import Results

# Okabe and Ito's palette, with grey and brown instead of its yellow, which is too light for lines.
BLACK, BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY, BROWN = (
    "#000000",
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#888888",
    "#6B4423",
)
# Two panels side by side are as wide as a page shows without shrinking their text.
PANEL = (4.2, 3.3)
ALONE = (6.2, 3.5)

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "keras_bn",
}
plt.rcParams.update(STYLE)


def panels(columns: int = 1, rows: int = 1, **kwargs: object) -> tuple[Figure, np.ndarray]:
    """A figure of one wide panel or of several of one size, and its axes as a flat array."""
    size = ALONE if columns == rows == 1 else (PANEL[0] * columns, PANEL[1] * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **kwargs)
    return figure, axes.ravel()


def curve(axes: Axes, x: Sequence[float], runs: np.ndarray, label: str, **style: object) -> Line2D:
    """The mean over seeds `(seeds, points)` as a line, and the range of the seeds as a band."""
    runs = np.atleast_2d(runs)
    (line,) = axes.plot(x, runs.mean(axis=0), label=label, **style)
    if len(runs) > 1:
        axes.fill_between(x, runs.min(axis=0), runs.max(axis=0), color=line.get_color(), alpha=0.15, lw=0)
    return line


def accuracy_curves(axes: Axes, results: Results, colours: Mapping[str, str], title: str) -> None:
    """Test accuracy over training steps of the variants named in `colours`, with a legend."""
    for variant, colour in colours.items():
        history = results.of(variant)[0]
        label = variant.split(", ")[-1]
        curve(axes, history["step"], results.values(variant, "accuracy"), label, color=colour)
    axes.set_title(title)
    step_axis(axes, history["step"])
    percent_axis(axes)
    if len(colours) > 4:
        legend_beside(axes)
    else:
        axes.legend(loc="center right")


def legend_beside(axes: Axes) -> None:
    """A legend too long for the panel, to its right."""
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def step_axis(axes: Axes, measured: Sequence[int]) -> None:
    """Training steps on a log axis from the first measurement on, since most happens early."""
    axes.set_xscale("log")
    axes.set(xlabel="training step", xlim=(measured[1], measured[-1]))
    room = measured[-1] <= 100 * measured[1]
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if room else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def loss_curves(axes: Axes, results: Results, colours: Mapping[str, str]) -> None:
    """Test loss over training steps of the variants named in `colours`."""
    for variant, colour in colours.items():
        history = results.of(variant)[0]
        curve(axes, history["step"], results.values(variant, "loss"), variant, color=colour)
    step_axis(axes, history["step"])
    loss_axis(axes)
    axes.set_title("Cross-entropy")


def loss_axis(axes: Axes) -> None:
    """Test loss on a log axis."""
    axes.set(yscale="log", ylabel="test loss")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path` as PNG and as SVG; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in written:
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
    return written


def percent_axis(axes: Axes, label: str = "test accuracy") -> None:
    """Fractions on the y axis, shown in percent."""
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(label)
