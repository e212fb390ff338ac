"""The measurements as a picture: latency against throughput."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from keras_bn.profiling.measurement import Measurement

_WIDTH, _HEIGHT, _MARGIN = 720, 420, 60
_COLORS = {"float32": "#1f77b4", "bfloat16": "#d95f02"}


def svg(measurements: Sequence[Measurement], optima: Sequence[Measurement]) -> str:
    """An SVG document with a point for every measurement; the optima have a ring and their setting beside
    them."""
    most = max(each.throughput for each in measurements) * 1.1
    longest = max(each.median for each in measurements) * 1.1

    def place(each: Measurement) -> tuple[float, float]:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * each.throughput / most
        return x, _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * each.median / longest

    parts = [_line(_MARGIN, _HEIGHT - _MARGIN, _WIDTH - _MARGIN, _HEIGHT - _MARGIN)]
    parts.append(_line(_MARGIN, _MARGIN, _MARGIN, _HEIGHT - _MARGIN))
    for share in (0.25, 0.5, 0.75, 1.0):
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * share
        y = _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * share
        parts.append(_text(x, _HEIGHT - _MARGIN + 16, f"{most * share:.3g}", "middle"))
        parts.append(_text(_MARGIN - 6, y + 4, f"{1e3 * longest * share:.3g}", "end"))
    parts.append(_text(_WIDTH / 2, _HEIGHT - 16, "requests per second", "middle"))
    parts.append(_text(_MARGIN, _MARGIN - 14, "median latency, ms", "start"))
    for each in measurements:
        x, y = place(each)
        color, label = _COLORS.get(each.setting.precision, "#666"), escape(_label(each))
        point = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}">'
        parts.append(f"{point}<title>{label}</title></circle>")
    for each in optima:
        x, y = place(each)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" stroke="#000"/>')
        anchor = "end" if x > _WIDTH / 2 else "start"
        parts.append(_text(x - 12 if anchor == "end" else x + 12, y - 8, _label(each), anchor))
    for index, (precision, color) in enumerate(_COLORS.items()):
        if any(each.setting.precision == precision for each in measurements):
            x = _WIDTH - _MARGIN - 80 * index
            place_and_color = f'x="{x}" y="{_MARGIN - 14}" text-anchor="end" fill="{color}"'
            parts.append(f"<text {place_and_color}>{precision}</text>")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _label(each: Measurement) -> str:
    setting = each.setting
    return f"{setting.threads} threads, batch {setting.batch_size}, {setting.clients} clients"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#999"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
