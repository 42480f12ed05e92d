"""Text tables for the terminal: columns as wide as their widest cell, numbers to the right, no borders to copy by
accident. Cells are plain text; colour is added by the caller, on whole cells, through `paint`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Cell = str | int | float
Paint = Callable[[str, str], str]


def _no_paint(_heading: str, text: str) -> str:
    return text


def render(headings: Sequence[str], rows: Sequence[Sequence[Cell]], *, paint: Paint = _no_paint) -> str:
    """`paint(heading, padded_cell)` may add colour: it is called after the padding, which it cannot upset."""
    text = [[_show(cell) for cell in row] for row in rows]
    right = [bool(rows) and all(not isinstance(row[i], str) for row in rows) for i in range(len(headings))]
    widths = [max(len(heading), *(len(row[i]) for row in text), 0) for i, heading in enumerate(headings)]
    lines = ["  ".join(_pad(h.upper(), widths[i], right[i]) for i, h in enumerate(headings)).rstrip()]
    for row in text:
        cells = [paint(headings[i], _pad(cell, widths[i], right[i])) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _show(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else (cell or "-")


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)
