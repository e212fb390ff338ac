"""Small charts as SVG text, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from keras_bn.inspection.layer_report import Vector

_WIDTH, _WIDE, _HEIGHT = 320, 860, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 20


class _Axes:
    """A plot area: maps data to pixels, draws ticks and grid lines."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], width: int = _WIDTH) -> None:
        self.right = width - _RIGHT
        self.ticks = round_ticks(*y)
        self._x = x

    def x(self, value: float) -> float:
        low, high = self._x
        return round(_LEFT + (self.right - _LEFT) * (value - low) / ((high - low) or 1), 1)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        share = min(max((value - low) / (high - low), 0), 1)  # what lies beyond is drawn at the rim
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share, 1)

    def points(self, xs: Sequence[float] | Vector, ys: Sequence[float] | Vector) -> str:
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in zip(xs, ys, strict=True))

    def bar(self, kind: str, centre: float, width: float, start: float, end: float) -> str:
        """A rectangle from one y to another, `width` pixels wide."""
        top, bottom = sorted((self.y(start), self.y(end)))
        x = round(self.x(centre) - width / 2, 1)
        height = max(round(bottom - top, 1), 0.5)
        return f'<rect class="{kind}" x="{x}" width="{width:.1f}" y="{top}" height="{height}"/>'

    def line(self, kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
        """A line between pixels."""
        return f'<line class="{kind}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'

    def picture(self, label: str, content: str, left: str = "", right: str = "") -> str:
        """The whole SVG: grid, content, and the text under the ends of the x axis."""
        grid = "".join(
            self.line("grid", _LEFT, self.right, self.y(tick), self.y(tick))
            + _text(_LEFT - 5, self.y(tick) + 3.5, f"{tick:.3g}", "end")
            for tick in self.ticks
        )
        foot = _text(_LEFT, _HEIGHT - 5, left) + _text(self.right, _HEIGHT - 5, right, "end")
        box = f'viewBox="0 0 {self.right + _RIGHT} {_HEIGHT}"'
        return f'<svg {box} role="img" aria-label="{escape(label)}">{grid}{content}{foot}</svg>'


def band(label: str, percentiles: Vector) -> str:
    """The range between the outer two percentiles and the median line, channels in order of their medians.

    Args:
        label: Text alternative of the chart.
        percentiles: `(3, channels)`.
    """
    ordered = _thinned(percentiles[:, np.argsort(percentiles[1])])
    if ordered.shape[1] == 1:  # one channel is drawn as wide as the picture
        ordered = ordered[:, [0, 0]]
    channels = np.arange(ordered.shape[1], dtype=float)
    axes = _Axes((0, channels[-1]), (float(ordered.min()), float(ordered.max())))
    rim = axes.points([*channels, *channels[::-1]], [*ordered[0], *ordered[2][::-1]])
    median = axes.points(channels, ordered[1])
    content = f'<polygon class="band" points="{rim}"/><polyline class="line" points="{median}"/>'
    return axes.picture(label, content, "channels, by median", str(percentiles.shape[1]))


def histogram(label: str, values: Vector) -> str:
    """A histogram of the values of the channels."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return _Axes((0, 1), (0, 1)).picture(label, "", "no finite value")
    counts, edges = np.histogram(finite, bins=min(24, max(6, len(finite) // 3)))
    axes = _Axes((edges[0], edges[-1]), (0, counts.max()))
    width = axes.x(edges[1]) - axes.x(edges[0]) - 1
    centres = (edges[:-1] + edges[1:]) / 2
    bars = (
        _titled(f"{n} near {x:.3g}", axes.bar("bar", x, width, 0, n))
        for n, x in zip(counts, centres, strict=True)
        if n
    )
    return axes.picture(label, "".join(bars), f"{edges[0]:.3g}", f"{edges[-1]:.3g}")


def stems(label: str, values: Vector, limit: float) -> str:
    """A signed value per channel, largest first; those beyond ± `limit` in the colour of a problem."""
    ordered = _thinned(np.sort(values)[::-1])
    reach = max(float(np.abs(ordered).max()), limit)
    axes = _Axes((-0.5, len(ordered) - 0.5), (-reach, reach))
    width = min(0.7 * (axes.x(1) - axes.x(0)), 20)
    bars = (
        _titled(f"{value:.3g}", axes.bar("bad" if abs(value) > limit else "bar", i, width, 0, value))
        for i, value in enumerate(ordered)
    )
    return axes.picture(label, "".join(bars), "channels, by value", str(len(values)))


def profile(label: str, names: Sequence[str], values: Sequence[Vector], limits: tuple[float, float]) -> str:
    """A bar per layer up to the median channel, a whisker to the largest, and a line where problems begin.

    Args:
        label: Text alternative of the chart.
        names: Names of the layers.
        values: One value per channel for each layer.
        limits: The perfect value, at which the bars start, and the value above which there is a problem.
    """
    perfect, limit = limits
    medians = [float(np.median(channels)) for channels in values]
    reach = max(limit * 1.2, *(float(channels.max()) for channels in values))
    axes = _Axes((-0.5, len(names) - 0.5), (perfect, reach), _WIDE)
    width = min(0.65 * (axes.x(1) - axes.x(0)), 40)
    content = ""
    for i, (name, median, channels) in enumerate(zip(names, medians, values, strict=True)):
        largest = float(channels.max())
        content += _titled(
            f"{name}: median {median:.2g}, largest {largest:.2g}",
            axes.bar("bad" if median > limit else "bar", i, width, perfect, median)
            + axes.line("whisker", axes.x(i), axes.x(i), axes.y(median), axes.y(largest)),
        )
    content += axes.line("limit", _LEFT, axes.right, axes.y(limit), axes.y(limit))
    return axes.picture(label, content, names[0], names[-1] if len(names) > 1 else "")


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover low to high in about four steps.

    >>> round_ticks(-0.9, 2.7)
    [-1.0, 0.0, 1.0, 2.0, 3.0]
    """
    if not high - low > max(1e-12 * max(abs(low), abs(high)), 1e-300):  # nothing to tell apart
        low, high = low - 0.5, low + 0.5
    raw = (high - low) / 4
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in np.arange(first, last + 1)]


def _titled(title: str, shape: str) -> str:
    """A shape with a tooltip."""
    return f"<g><title>{escape(title)}</title>{shape}</g>"


def _thinned(values: Vector, most: int = 128) -> Vector:
    """At most so many channels, evenly spaced along the last axis, since a screen shows no more."""
    length = values.shape[-1]
    return values if length <= most else values[..., np.linspace(0, length - 1, most).astype(int)]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
