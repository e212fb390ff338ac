"""The report on a model's BN layers: a table, JSON, or a page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_bn.inspection.layer_report import LayerReport, Vector


@dataclass(frozen=True)
class InspectionReport:
    """What `keras_bn.inspect` found; prints as a table.

    Attributes:
        model: the model's name.
        layers: one `LayerReport` per BN layer, in the order of the graph.
        change: the largest change of an output that recalibration on the data would bring, as a fraction of
            the largest output; None without data.
    """

    model: str
    layers: tuple[LayerReport, ...]
    change: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether no layer has a problem; warnings do not count."""
        return not any(layer.problems for layer in self.layers)

    @property
    def summary(self) -> str:
        """The report in one line."""
        sick = sum(bool(layer.problems) for layer in self.layers)
        verdict = "healthy" if self.healthy else f"{sick} of {len(self.layers)} with problems"
        change = (
            "" if self.change is None else f"; recalibration would change the output by {self.change:.2%}"
        )
        return f"{self.model}: {len(self.layers)} batch normalization layer(s), {verdict}{change}"

    def __str__(self) -> str:
        head = ["layer", "shape", "momentum", "epsilon", "gamma", "mean", "variance"]
        with_data = any(layer.data for layer in self.layers)
        head += ["mean off", "variance off"] if with_data else []
        rows = [[*head, "fold", "status"]] + [self._row(layer, with_data) for layer in self.layers]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([self.summary, *lines])

    def _row(self, layer: LayerReport, with_data: bool) -> list[str]:
        cells = [
            layer.layer,
            "x".join("?" if n is None else str(n) for n in layer.shape[1:]),
            "cumulative" if layer.momentum is None else f"{layer.momentum:g}",
            f"{layer.epsilon:g}",
            *(_span(getattr(layer, name)) for name in ("gamma", "mean", "variance")),
        ]
        if with_data and layer.mean_shift is not None and layer.variance_ratio is not None:
            cells += [
                f"{np.median(layer.mean_shift):.2g} (<= {layer.mean_shift.max():.2g})",
                _span(layer.variance_ratio),
            ]
        elif with_data:
            cells += ["", ""]
        return [*cells, layer.fold, "; ".join(layer.problems + layer.warnings) or "ok"]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists, strings and numbers."""
        return {
            "model": self.model,
            "healthy": self.healthy,
            "change": self.change,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_html(self) -> str:
        """The report as one HTML page that needs nothing else, with plots."""
        from keras_bn.inspection.page import page

        return page(self)


def _span(values: Vector) -> str:
    return f"{values.min():.2g}..{values.max():.2g}"
