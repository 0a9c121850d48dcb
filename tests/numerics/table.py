"""The table of docs/numerics.md: what the package's certificates say, an op a line.

``python -m tests.numerics.table`` writes it between the two marks of that page.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
CERTIFICATES = ROOT / "aoti_eager" / "_dispatch" / "certificates.json"
PAGE = ROOT / "docs" / "numerics.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

# What is shown of an error, for these dtypes; all others are named only.
_SHOWN = ("float32", "bfloat16")
_LONGEST_REASON = 140


def table(document: dict[str, Any]) -> str:
    """Return the table of a document of certificates, in Markdown."""
    rows = document["rows"]
    by_op: dict[tuple[str, str], list[list[Any]]] = defaultdict(list)
    for row in rows:
        by_op[row[2], row[0]].append(row)
    lines = [
        f"Made {document['made']} with torch {document['torch']} and {document['compiler']}.",
        "",
        _totals(rows),
    ]
    for target in sorted({row[2] for row in rows}, reverse=True):
        lines += [
            "",
            f"### {target}",
            "",
            "Errors are the largest of finite results, in ulp: eager's / compiled code's.",
            "",
            "| op | certified | "
            + " | ".join(_SHOWN)
            + " | zeros of another sign | not certified |",
            "|---" * (len(_SHOWN) + 4) + "|",
        ]
        lines += [_line(op, found) for (one, op), found in sorted(by_op.items()) if one == target]
    return "\n".join(lines) + "\n"


def _totals(rows: list[list[Any]]) -> str:
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        counts[row[2], row[1]][row[3] == "certified"] += 1
    lines = ["| instruction set | dtype | certified | not certified |", "|---|---|---|---|"]
    for (target, dtype), (refused, certified) in sorted(counts.items()):
        lines.append(f"| {target} | {dtype} | {certified} | {refused} |")
    return "\n".join(lines)


def _line(op: str, rows: list[list[Any]]) -> str:
    by_dtype = {row[1]: row for row in rows}
    certified = [dtype for dtype, row in by_dtype.items() if row[3] == "certified"]
    errors = [_errors(by_dtype.get(dtype)) for dtype in _SHOWN]
    zeros = ", ".join(f"{dtype} {row[6]}" for dtype, row in by_dtype.items() if row[6])
    reasons: dict[str, list[str]] = defaultdict(list)
    for dtype, row in by_dtype.items():
        if row[3] != "certified":
            reasons[_short(row[8])].append(dtype)
    refused = "; ".join(f"{', '.join(dtypes)}: {reason}" for reason, dtypes in reasons.items())
    cells = (f"`{op}`", ", ".join(certified), *errors, zeros, refused)
    return "| " + " | ".join(cell or "-" for cell in cells) + " |"


def _errors(row: list[Any] | None) -> str:
    if row is None or row[5] is None:
        return ""
    return f"{_number(row[4])} / {_number(row[5])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _short(reason: str) -> str:
    text = " ".join(reason.split()).replace("|", "\\|")
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."


def page(text: str, document: dict[str, Any]) -> str:
    """Return the page's ``text`` with the table of ``document`` in its place."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(document)}\n{END}{after}"


def main() -> int:
    """Write the table into docs/numerics.md."""
    document = json.loads(CERTIFICATES.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page(text, document), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
