"""The table of docs/numerics.md is that of the package's certificates."""

from __future__ import annotations

import json

from ..numerics.table import (
    CERTIFICATES,
    PAGE,
    page,
    table,
)

DOCUMENT = {
    "format": 1,
    "torch": "2.13.0",
    "compiler": "g++ 12",
    "made": "2026-11-29",
    "rows": [
        ["aten::exp", "float32", "x86-64-v4", "certified", 0.51, 1.25, 0, "exhaustive", ""],
        ["aten::exp", "float16", "x86-64-v4", "certified", 0.5, 0.5, 3, "exhaustive", ""],
        ["aten::exp", "float64", "x86-64-v4", "uncertified", 0.5, 9.0, 0, "edges", "8.5 | ulp off"],
    ],
}


def test_an_op_is_a_line_with_what_serves_and_what_does_not() -> None:
    text = table(DOCUMENT)
    assert "Made 2026-11-29 with torch 2.13.0 and g++ 12." in text
    cells = ("`aten::exp`", "float32, float16", "0.51 / 1.25", "-", "float16 3")
    assert f"| {' | '.join(cells)} | float64: 8.5 \\| ulp off |" in text
    assert "| x86-64-v4 | float64 | 0 | 1 |" in text


def test_the_page_has_the_table_of_the_package() -> None:
    text = PAGE.read_text(encoding="utf-8")
    document = json.loads(CERTIFICATES.read_text(encoding="utf-8"))
    assert page(text, document) == text
