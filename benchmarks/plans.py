"""What does the planner say of the programs of a recipe, on slices that are not here?

Each program goes through the real TPU compiler, one after the other; the table keeps those of earlier calls. Compiled,
not measured. A program of full size takes minutes, and several GB.

    python benchmarks/plans.py [--config=configs/minimax_m2.py:full] [--topology=v5p:4x4x8] [--programs=sft,decode]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import measure

GIB = 2**30
KEPT = ("fits", "memory", "memory_total", "seconds", "mfu", "tokens_per_second", "chip_hours", "rooflines", "bound_by",
        "losses", "collectives", "refusal", "nearest", "error", "compile_seconds", "host_bytes")  # fmt: skip


def main() -> None:
    """Plans each program, and puts it into the table as soon as it is there."""
    parser = measure.parser(__doc__, "plans")
    parser.add_argument("--config", default=f"{measure.RECIPE}:full", help="recipe, with its scale")
    parser.add_argument("--topology", action="append", help="slices; may be given again (v5p:4x4x8)")
    parser.add_argument("--programs", default="sft,rl,prefill,decode,transfer")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe: sft.length=8192"
    )
    options = parser.parse_args()
    measure.start(cores=2)
    import config_file

    from posttrain_jax.errors import UserError
    from posttrain_jax.planning import plan, search
    from posttrain_jax.planning.chips import read_slice
    from posttrain_jax.run import validate

    path, _, scale = options.config.rpartition(":")
    parts = (pair.partition("=") for pair in options.set)
    given = [(f"config.{key}", value) for key, _, value in parts]
    config, mistakes = config_file.override(Path(path), scale, given)
    if mistakes:
        raise SystemExit("\n".join(mistakes))
    recipe = validate.recipe_from(config)
    for topology in options.topology or ["v5p:4x4x8"]:
        part = read_slice(topology)
        placed = plan.check(recipe, part)
        for name in plan.programs(options.programs.split(","), placed):
            title = f"{placed.name}:{placed.scale} on {part.name}, {search.say(placed)}"
            try:
                row = plan.make(placed, part, [name], log=lambda line: print(line, file=sys.stderr, flush=True))
                row = row["programs"][0]
            except UserError as error:  # the compiler died
                row = {"fits": False, "error": str(error)}
            found = {key: row[key] for key in KEPT if key in row}
            head = {"recipe": f"{placed.name}:{placed.scale}", "changed": options.set, "topology": topology}
            rows = _kept(options.output, {**head, "program": name})
            rows.append({**head, "program": name, "title": title, **found})
            measure.write(options.output, {"measured": False, "plans": rows})
    measure.show(
        "planned", ("recipe", "program", "slice", "GiB", "seconds", "MFU", "compiled in s"), _lines(options.output)
    )


def _kept(output, key):
    """Rows already in the table, but for the one that is to be replaced."""
    rows = json.loads(output.read_text())["plans"] if output.exists() else []
    return [row for row in rows if any(row[name] != value for name, value in key.items())]


def _lines(output):
    found = []
    for row in json.loads(output.read_text())["plans"]:
        size = f"{row.get('memory_total', 0.0) / GIB:.1f}{'' if row['fits'] else ' (does not fit)'}"
        numbers = (f"{row[key]:.3g}" if key in row else "" for key in ("seconds", "mfu", "compile_seconds"))
        found.append((row["recipe"], row["program"], row["topology"], size, *numbers))
    return found


if __name__ == "__main__":
    main()
