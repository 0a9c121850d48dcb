"""Draws the rows of ``tests.benchmarks.regions``: how many times as fast as eager."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

LEFT, RIGHT, BAR, GAP = 130, 60, 9, 8
WIDTH = 640
COLORS = {"fused": "#2a6f97", "torch.compile": "#c9ada7"}


def write_svg(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write two bars a row: eager's time over the fused model's, and over ``torch.compile``'s."""
    bars = [
        (f"{row['model']} {row['size']}", row["over_eager"], row["plain_ms"] / row["compiled_ms"])
        for row in rows
    ]
    longest = max([1.0, *(max(one, other) for _, one, other in bars)])
    unit = (WIDTH - LEFT - RIGHT) / longest
    step = 2 * BAR + GAP
    height = 40 + step * len(bars)
    size = f'width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        f'<rect {size} fill="white"/>',
    ]
    for place, (name, color) in enumerate(COLORS.items()):
        x = LEFT + 150 * place
        parts.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 15}" y="17">{escape(name)}, times as fast as eager</text>')
    for number, (label, *speeds) in enumerate(bars):
        y = 30 + step * number
        parts.append(f'<text x="{LEFT - 6}" y="{y + 13}" text-anchor="end">{escape(label)}</text>')
        for place, (speed, color) in enumerate(zip(speeds, COLORS.values(), strict=True)):
            top, width = y + BAR * place, unit * speed
            parts.append(
                f'<rect x="{LEFT}" y="{top}" width="{width:.1f}" height="8" fill="{color}"/>'
                f'<text x="{LEFT + width + 4:.1f}" y="{top + 8}" font-size="9">{speed:.2f}</text>'
            )
    one = LEFT + unit
    parts.append(f'<path d="M{one:.1f} 24V{height}" stroke="black" stroke-dasharray="2 2"/></svg>')
    path.write_text("\n".join(parts) + "\n")
