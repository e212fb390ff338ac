"""The report of a function that rewrites a model, with a row for every layer it considered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, NamedTuple

import keras

from keras_bn._table import html_table, text_table


@dataclass(frozen=True)
class Row:
    """One layer that was considered.

    Attributes:
        layer: Path of the call, such as `backbone/conv1`. The path of a later call of a shared layer ends in
            ` (call 2)`.
        kind: Class of the layer.
        action: The change, such as `folded`, or `left alone`.
        reason: The reason for the action, or its result.
        difference: Largest absolute change measured at this layer. None if nothing was measured.
        figures: The numbers in `reason`, by name.
    """

    layer: str
    kind: str
    action: str
    reason: str = ""
    difference: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Report:
    """The changes to a model. It prints as a table.

    Attributes:
        function: Name of the function that made them, such as `retrofit`, `convert`, `recalibrate` or `fold`.
        rows: One `Row` per layer considered, in the order of the graph.
        difference: Largest absolute change of any output, on the data that the result was checked with. None
            if it was not checked.
        notes: Notes on the whole model, a sentence each.

    >>> print(Report("fold", (Row("bn", "BatchNormalization", "folded", "into conv"),), difference=0.0))
    fold: 1 folded; largest change of an output 0
    layer  kind                action  reason     difference
    bn     BatchNormalization  folded  into conv
    """

    function: str
    rows: tuple[Row, ...]
    difference: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = (f"note: {note}" for note in self.notes)
        return "\n".join([self.summary, text_table(self._table()), *notes])

    def _repr_html_(self) -> str:
        """The report in a notebook."""
        notes = "".join(f"<p>note: {escape(note)}</p>" for note in self.notes)
        return f"<p>{escape(self.summary)}</p>{html_table(self._table())}{notes}"

    def _table(self) -> list[tuple[str, ...]]:
        head = ("layer", "kind", "action", "reason", "difference")
        return [head, *((r.layer, r.kind, r.action, r.reason, _number(r.difference)) for r in self.rows)]

    @property
    def summary(self) -> str:
        """The report in one line."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.action] = counts.get(row.action, 0) + 1
        done = ", ".join(f"{count} {action}" for action, count in counts.items()) or "nothing to do"
        measured = "" if self.difference is None else f"; largest change of an output {self.difference:.3g}"
        return f"{self.function}: {done}{measured}"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists, strings and numbers."""
        return asdict(self)

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=indent)


class SurgeryResult(NamedTuple):
    """The new model and the report on its changes."""

    model: keras.Model
    report: Report


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
