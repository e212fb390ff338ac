"""The report on a model's BN layers: a table, JSON, or a page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from typing import Any

from keras_bn._table import html_table, text_table
from keras_bn.inspection.layer_report import LayerReport, columns
from keras_bn.inspection.page import page

# The change of the output above which recalibration is advised. On networks for handwritten digits,
# recalibration gained at most one point of accuracy where the change was 0.04 to 0.16, 2.5 points at 0.36,
# and 11 to 30 points above 0.5.
CHANGED = 0.25


@dataclass(frozen=True)
class InspectionReport:
    """The result of `keras_bn.inspect`. It prints as a table.

    Attributes:
        model: Name of the model.
        layers: One `LayerReport` per BN layer, in the order of the graph.
        change: Largest change of an output that recalibration on the data would cause, as a fraction of the
            largest output. None without data.
        data: Short description of the data. Empty without data.
        examples: Number of examples of the data that were used.
        date: Date of the inspection, as `YYYY-MM-DD`.
        notes: Further notes, a sentence each.
    """

    model: str
    layers: tuple[LayerReport, ...]
    change: float | None = None
    data: str = ""
    examples: int = 0
    date: str = ""
    notes: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether no layer has a problem and recalibration would change no output by more than a quarter.

        The change is measured as a fraction of the largest output. Warnings do not count.
        """
        return not any(layer.problems for layer in self.layers) and not self._stale

    @property
    def _stale(self) -> bool:
        return self.change is not None and self.change > CHANGED

    @property
    def advice(self) -> str:
        """Advice in one or more sentences. Empty if there is nothing to do."""
        problems = {problem for layer in self.layers for problem in layer.problems}
        result = []
        if any("training=True" in problem for problem in problems):
            result.append("Build the model without training=True.")
        if any(word in problem for problem in problems for word in ("NaN", "negative variance")):
            result.append("Load valid weights.")
        statistics = any(word in problem for problem in problems for word in ("means off", "variances off"))
        if statistics or self._stale or "statistics never updated" in problems:
            result.append("Re-estimate the statistics: keras_bn.recalibrate(model, data).")
        if any("channel" in problem for problem in problems):
            result.append("Look at the channels that are dead or exploding, and at the learning rate.")
        return " ".join(result)

    @property
    def summary(self) -> str:
        """The report in one line."""
        sick = sum(bool(layer.problems) for layer in self.layers)
        verdict = f"{sick} of {len(self.layers)} with problems" if sick else "healthy"
        if self._stale and not sick:
            verdict = "statistics do not fit the data"
        change = "" if self.change is None else f"; recalibrate would change the output by {self.change:.2%}"
        return f"{self.model}: {len(self.layers)} batch normalization layer(s), {verdict}{change}"

    def __str__(self) -> str:
        lines = [self.summary, text_table(self._table())]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines + ([f"advice: {self.advice}"] if self.advice else []))

    def _repr_html_(self) -> str:
        """The report in a notebook."""
        last = [f"note: {note}" for note in self.notes] + ([self.advice] if self.advice else [])
        paragraphs = "".join(f"<p>{escape(text)}</p>" for text in last)
        return f"<p>{escape(self.summary)}</p>{html_table(self._table())}{paragraphs}"

    def _table(self) -> list[list[str]]:
        with_data = any(layer.data for layer in self.layers)
        name, *others = columns(with_data)
        rows = [[name, "status", *others]]
        for layer in self.layers:
            path, *cells = layer.cells(with_data)
            rows.append([path, "; ".join(layer.problems + layer.warnings) or "ok", *cells])
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists, strings and numbers."""
        return {
            "model": self.model,
            "healthy": self.healthy,
            "advice": self.advice,
            "change": self.change,
            "data": self.data,
            "examples": self.examples,
            "date": self.date,
            "notes": list(self.notes),
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_html(self) -> str:
        """The report as one self-contained HTML page with plots."""
        origin = f"{self.examples:,} examples of {self.data}" if self.data else "no data"
        facts = [text for text in (origin, self.date) if text]
        return page(
            self.model,
            self.layers,
            healthy=self.healthy,
            paragraphs=[f"{self.summary}.", self.advice, *self.notes, ", ".join(facts) + "."],
            change=self.change,
        )
