"""Rows of text in columns, for terminals."""

from __future__ import annotations

from collections.abc import Sequence

from .._base.printable import printable


def align(rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> list[str]:
    """Return one line a row, in columns of even width; each cell is made printable.

    Args:
        rows: Rows of equal length.
        left: Columns to align left; the others are aligned right.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]
