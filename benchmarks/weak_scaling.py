"""What does a chip send in a step of SFT as slices grow, rows growing with them? On paper: no TPU is needed.

MiniMax-M2's step, a row of the recipe's length on each chip, goes through the real TPU compiler for slices of v5p from
64 to 1,024 chips, and the collectives of what it made are added up, those of a layer as often as there are layers.
Collectives run beside nothing (`precision.overlap=False`), which changes when they run and not what they send. On 64
chips the step is told not to fit; what it sends is known all the same. Compiled, not measured.

    python benchmarks/weak_scaling.py [--slices=v5p:4x4x4,v5p:4x4x8]
"""

from __future__ import annotations

import dataclasses
import sys
from xml.sax.saxutils import escape

import measure

SLICES = "v5p:4x4x4,v5p:4x4x8,v5p:4x8x8,v5p:8x8x8,v5p:8x8x16"
EXPERT = 8  # as the recipe has it; "fsdp" takes what is left
LEFT, TOP, WIDTH, HEIGHT = 70, 60, 560, 260
COLOURS = ("#1f4e79", "#e59866", "#58a55c", "#b7a3c9", "#8d6e63", "#757575")


def main() -> None:
    """Plans each slice, keeps the numbers as they come, and draws them."""
    parser = measure.parser(__doc__, "weak_scaling")
    parser.add_argument("--slices", default=SLICES)
    options = parser.parse_args()
    measure.start(cores=2)
    from posttrain_jax.planning import plan
    from posttrain_jax.planning.chips import read_slice

    rows = []
    for name in options.slices.split(","):
        part = read_slice(name)
        chips = part.chips
        settings = (
            *(f"mesh.fsdp={chips // EXPERT}", f"sft.rows={chips}", f"sft.microbatch_rows={chips}"),
            "precision.overlap=False",
        )
        recipe = plan.check(measure.recipe("full", *settings), part)
        told = plan.make(recipe, part, ["sft"], log=lambda line: print(line, file=sys.stderr, flush=True))
        (step,) = told["programs"]
        kinds = _by_kind(step["collectives"])
        rows.append({"topology": name, "chips": chips, "kinds": kinds, "step": sum(kinds.values())})
        rows[-1] |= {key: step[key] for key in ("seconds", "mfu", "memory_total", "compile_seconds", "rooflines")}
        numbers = {"measured": False, "recipe": dataclasses.asdict(measure.recipe("full").mesh), "slices": rows}
        measure.write(options.output, numbers)
        options.output.with_suffix(".svg").write_text(svg(rows))
    measure.show(
        "sent by a chip in a step of SFT",
        ("chips", "GB", "seconds of links alone", "seconds of the step", "MFU"),
        [(r["chips"], r["step"] / 1e9, r["rooflines"]["ici"], r["seconds"], r["mfu"]) for r in rows],
    )


def _by_kind(collectives):
    """Bytes that a device sends, by kind and mesh axes."""
    found: dict[str, float] = {}
    for row in collectives:
        key = f"{row['kind']} over {row['axes']}"
        found[key] = found.get(key, 0.0) + row["bytes"]
    return found


def svg(rows: list[dict]) -> str:
    """Gigabytes a chip sends in a step, stacked by collective, against chips."""
    totals = {kind: sum(row["kinds"].get(kind, 0.0) for row in rows) for kind in _kinds(rows)}
    shown = sorted(totals, key=lambda kind: -totals[kind])[: len(COLOURS)]
    most = max(row["step"] for row in rows) * 1.1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 30}" height="{TOP + HEIGHT + 150}" '
        'font-family="system-ui, sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>',
        '<text x="16" y="24" font-size="16">MiniMax-M2, a step of SFT: GB that a chip sends, a row on each chip</text>',
        '<text x="16" y="44" fill="#555">from compiled programs for v5p, not measured</text>',
    ]
    step = WIDTH / len(rows)
    for place, row in enumerate(rows):
        x, top = LEFT + place * step + step / 4, float(TOP + HEIGHT)
        for kind, colour in zip(shown, COLOURS, strict=False):
            height = max(row["kinds"].get(kind, 0.0), 0.0) / most * HEIGHT
            top -= height
            parts.append(
                f'<rect x="{x:.0f}" y="{top:.1f}" width="{step / 2:.0f}" height="{height:.1f}" fill="{colour}"/>'
            )
        middle = x + step / 4
        parts.append(f'<text x="{middle:.0f}" y="{top - 6:.0f}" text-anchor="middle">{row["step"] / 1e9:.0f}</text>')
        parts.append(f'<text x="{middle:.0f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{row["chips"]} chips</text>')
    for place, (kind, colour) in enumerate(zip(shown, COLOURS, strict=False)):
        y = TOP + HEIGHT + 40 + 17 * place
        parts.append(f'<rect x="{LEFT}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 18}" y="{y + 11}" font-size="12">{escape(kind)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _kinds(rows):
    return dict.fromkeys(kind for row in rows for kind in row["kinds"])


if __name__ == "__main__":
    main()
