"""The report as one HTML page: style, tables and charts in the file, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

import numpy as np

from keras_bn.inspection.charts import band, histogram, profile, stems
from keras_bn.inspection.layer_report import MEAN_OFF, VARIANCE_OFF, DataReport, LayerReport, columns

_DRIFT_NOTE = (
    "A bar reaches to the typical (median) channel, a whisker to the farthest; red is past the dashed line. "
    "Every layer is looked at with those before it as they are, so the first red one is where to start."
)


def page(
    model: str,
    layers: Sequence[LayerReport],
    *,
    healthy: bool,
    paragraphs: Sequence[str],
    change: float | None,
) -> str:
    """The HTML of a report.

    Args:
        model: Name of the model.
        layers: Report on each layer.
        healthy: The verdict.
        paragraphs: Paragraphs below the title. The first is a summary. Empty ones are left out.
        change: Change of the output by recalibration. None without data.
    """
    title = escape(f"Batch normalization in {model}")
    style = resources.files("keras_bn.inspection").joinpath("page.css").read_text("utf-8")
    head = "".join(f"<p>{escape(text)}</p>" for text in paragraphs if text)
    body = [f"<h1>{title}</h1>{head}", _tiles(layers, healthy, change)]
    if with_data := [layer for layer in layers if layer.data]:
        body += ["<h2>Statistics against the data, layer by layer</h2>", _drift(with_data)]
    body += ["<h2>Layers</h2>", _table(layers), "<h2>Channels</h2>"]
    # The first few are open, and every one with a problem: that is what the reader came for.
    body += [_card(layer, i < 2 or bool(layer.problems)) for i, layer in enumerate(layers)]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{title}</title><style>{style}</style></head><body><main>",
            *body,
            "</main></body></html>\n",
        ]
    )


def _tiles(layers: Sequence[LayerReport], healthy: bool, change: float | None) -> str:
    tiles = {
        "verdict": "healthy" if healthy else "not healthy",
        "layers": str(len(layers)),
        "channels": f"{sum(len(layer.gamma) for layer in layers):,}",
        "dead channels": f"{sum(len(layer.dead) for layer in layers):,}",
        "layers that fold away": str(sum(layer.fold.startswith("into") for layer in layers)),
    }
    if change is not None:
        tiles["change of the output by recalibration"] = f"{change:.1%}"
    kind = {"healthy": "good", "not healthy": "bad"}
    cells = (
        f'<div class="tile {kind.get(value, "")}"><b>{value}</b><span>{name}</span></div>'
        for name, value in tiles.items()
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _drift(layers: list[LayerReport]) -> str:
    names = [layer.layer for layer in layers]
    shifts = [layer.mean_shift for layer in layers if layer.mean_shift is not None]
    ratios = [layer.variance_ratio for layer in layers if layer.variance_ratio is not None]
    doublings = [np.abs(np.log2(ratio)) for ratio in ratios]
    means = "Means: deviations between the moving mean and the data's"
    variances = "Variances: doublings (log₂) between the moving variance and the data's"
    return (
        f'<p>{_DRIFT_NOTE}</p><div class="card">'
        + _figure(means, profile(means, names, shifts, (0, MEAN_OFF)))
        + _figure(variances, profile(variances, names, doublings, (0, float(np.log2(VARIANCE_OFF)))))
        + "</div>"
    )


def _table(layers: Sequence[LayerReport]) -> str:
    with_data = any(layer.data for layer in layers)
    first, *others = columns(with_data)
    head = "".join(f"<th>{name}</th>" for name in [first, "status", *others])
    rows = "".join(f"<tr>{_cells(layer, with_data)}</tr>" for layer in layers)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cells(layer: LayerReport, with_data: bool) -> str:
    name, *numbers, fold = layer.cells(with_data)
    cells = "".join(f'<td class="number">{escape(number)}</td>' for number in numbers)
    status = f'<td class="status">{_chips(layer)}</td>'
    return f'<td>{escape(name)}</td>{status}{cells}<td class="fold">{escape(fold)}</td>'


def _chips(layer: LayerReport) -> str:
    chips = [("bad", text) for text in layer.problems] + [("warn", text) for text in layer.warnings]
    chips = chips or [("good", "ok")]
    return "".join(f'<span class="chip {kind}">{escape(text)}</span>' for kind, text in chips)


def _card(layer: LayerReport, is_open: bool) -> str:
    figures = [] if layer.data is None else _against_data(layer, layer.data)
    figures += [_figure(name, histogram(name, getattr(layer, name))) for name in ("gamma", "beta")]
    head = f"<summary><h3>{escape(layer.layer)}</h3>{_chips(layer)}</summary>"
    state = " open" if is_open else ""
    return f'<details class="card"{state}>{head}<div class="charts">{"".join(figures)}</div></details>'


def _against_data(layer: LayerReport, data: DataReport) -> list[str]:
    inputs = "Inputs: 15th, 50th and 85th percentile"
    outputs = "Outputs: 15th, 50th and 85th percentile"
    mean = "Moving mean less the data's, in deviations"
    variance = "Moving variance over the data's, log₂"
    shift = (layer.mean - data.mean) / np.sqrt(data.variance + layer.epsilon)
    ratio = (layer.variance + layer.epsilon) / (data.variance + layer.epsilon)
    return [
        _figure(inputs, band(inputs, data.before)),
        _figure(outputs, band(outputs, data.after)),
        _figure(mean, stems(mean, shift, MEAN_OFF)),
        _figure(variance, stems(variance, np.log2(ratio), float(np.log2(VARIANCE_OFF)))),
    ]


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"
