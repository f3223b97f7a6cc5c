"""HBM of each program as a stacked bar against what a device has: one SVG file, nothing else needed."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from posttrain_jax.planning.chips import GIB

COLOURS = {
    "weights": "#1f4e79",
    "optimiser": "#2e86c1",
    "gradients": "#7fb3d5",
    "activations": "#e59866",
    "cache": "#58a55c",
    "batch": "#b7a3c9",
    "results": "#8d6e63",
    "padding": "#bdbdbd",
    "code": "#757575",
}
LEFT, WIDTH, BAR, GAP, TOP = 110, 620, 30, 18, 64


def svg(plan: dict[str, Any]) -> str:
    """The picture of a plan, as `launch/plan.py --json` tells it."""
    rows = [row for row in plan["programs"] if "memory" in row]
    capacity = rows[0]["hbm"] if rows else GIB
    most = max([capacity, *(row["memory_total"] for row in rows)]) * 1.05
    height = TOP + len(rows) * (BAR + GAP) + 62
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 130}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="100%" height="100%" fill="white"/><text x="16" y="26" font-size="16">'
        f"{escape(plan['title'])}</text>",
        '<text x="16" y="46" fill="#555">HBM of a device, GiB; compiled by the TPU compiler, not measured</text>',
    ]
    for place, row in enumerate(rows):
        top, left = TOP + place * (BAR + GAP), float(LEFT)
        parts.append(f'<text x="{LEFT - 10}" y="{top + 20}" text-anchor="end">{escape(row["program"])}</text>')
        for name, size in row["memory"].items():
            width = size / most * WIDTH
            if width > 0.3:
                told = escape(f"{name}: {size / GIB:.2f} GiB")
                parts.append(
                    f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" '
                    f'fill="{COLOURS.get(name, "#999")}"><title>{told}</title></rect>'
                )
            left += width
        total = f"{row['memory_total'] / GIB:.1f} {'' if row['fits'] else 'does not fit'}"
        parts.append(f'<text x="{left + 6:.1f}" y="{top + 20}">{total}</text>')
    bottom = TOP + len(rows) * (BAR + GAP)
    limit = LEFT + capacity / most * WIDTH
    parts.append(
        f'<path d="M{limit:.1f} {TOP - 8}V{bottom}" stroke="#c0392b" stroke-dasharray="5 3"/>'
        f'<text x="{limit:.1f}" y="{bottom + 14}" fill="#c0392b" text-anchor="middle">{capacity / GIB:.0f} GiB</text>'
    )
    shown = dict.fromkeys(name for row in rows for name, size in row["memory"].items() if size / most * WIDTH > 0.3)
    for place, name in enumerate(shown):
        x = 16 + place * 92
        parts.append(
            f'<rect x="{x}" y="{bottom + 30}" width="12" height="12" fill="{COLOURS.get(name, "#999")}"/>'
            f'<text x="{x + 16}" y="{bottom + 41}" font-size="12">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
