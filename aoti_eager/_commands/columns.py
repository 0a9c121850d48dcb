"""Rows of text in columns, for terminals."""

from __future__ import annotations

import sys
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


def show(rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> None:
    """Print rows under a header: in a terminal, no wider than the terminal; else a line a row.

    Args:
        rows: The header and the rows, of equal length.
        left: Columns to align left, whose text may take several lines; the others are aligned
            right.
    """
    if not sys.stdout.isatty():
        print("\n".join(align(rows, left=left)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    header, *others = [[Text(printable(cell)) for cell in row] for row in rows]
    for number, cell in enumerate(header):
        is_left = number in left
        table.add_column(
            cell, justify="left" if is_left else "right", overflow="fold", no_wrap=not is_left
        )
    for row in others:
        table.add_row(*row)
    Console(highlight=False, markup=False, emoji=False).print(table)
