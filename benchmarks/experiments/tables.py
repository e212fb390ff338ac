"""Summaries as aligned text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.experiments.results import Results
from benchmarks.experiments.training import steps_to


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first is flush left, the others right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def percent(values: np.ndarray) -> str:
    """The mean of fractions over seeds in percent, and their range if there are several."""
    values = 100 * np.asarray(values, "float64")
    if values.size == 1:
        return f"{values.item():.1f}"
    return f"{values.mean():.1f} ({values.min():.1f}-{values.max():.1f})"


def steps(values: Sequence[float | None]) -> str:
    """The mean number of steps over seeds; how many seeds got there if not all did."""
    reached = [value for value in values if value is not None]
    if not reached:
        return "never"
    some = "" if len(reached) == len(values) else f" ({len(reached)} of {len(values)})"
    return f"{np.mean(reached):.0f}{some}"


def accuracies(results: Results, variants: Sequence[str], target: float) -> str:
    """Per variant the steps to a test accuracy, the best and the last accuracy."""
    rows = [
        [
            variant,
            steps([steps_to(history, target) for history in results.of(variant)]),
            percent(results.values(variant, "accuracy").max(axis=1)),
            percent(results.values(variant, "accuracy")[:, -1]),
        ]
        for variant in variants
    ]
    return aligned(["", f"steps to {target:.0%}", "best accuracy %", "last accuracy %"], rows)
