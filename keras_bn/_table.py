"""A table of strings, for a terminal or a web page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def text_table(rows: Iterable[Sequence[str]]) -> str:
    """Lines with the columns aligned; the first row is the head.

    >>> print(text_table([("layer", "action"), ("bn", "folded")]))
    layer  action
    bn     folded
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def html_table(rows: Iterable[Sequence[str]]) -> str:
    """The same as an HTML table.

    >>> html_table([("layer",), ("a < b",)])
    '<table><thead><tr><th>layer</th></tr></thead><tbody><tr><td>a &lt; b</td></tr></tbody></table>'
    """
    head, *body = rows
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
