"""What does the planner say of the full recipes on slices that are not here?

Each program of `FULL` goes through the real TPU compiler, one after the other. Compiled, not measured. A program of
full size takes minutes, and several GB; its row is in the table as soon as it is there, and what was compiled before
from the same source is not compiled again, so an interrupted run loses nothing. ``--only`` makes the named rows alone
and leaves the others; ``--config`` and ``--topology`` plan something else.

    python benchmarks/plans.py [--only=minimax_m2 --only=v6e] [--programs=rl,decode]
    python benchmarks/plans.py --config=configs/minimax_m2.py:full --topology=v5p:4x8x8 --set=mesh.fsdp=32
"""

from __future__ import annotations

import json
import sys

import measure

GIB = 2**30
V6E = (
    *("mesh.fsdp=4", "mesh.expert=16", "mesh.context=4", "precision.overlap=False"),
    *("sft.rows=64", "sft.microbatch_rows=64", "rl.microbatch_rows=64"),
)
# recipe, slice, and what of the recipe is changed for it
FULL = (
    ("minimax_m2", "v5p:4x4x8", ()),
    ("minimax_m2", "tpu7x:4x4x4", ()),
    ("minimax_m2", "v6e:16x16", V6E),
    ("kimi_k2", "v5p:8x8x8", ()),
    ("glm_4_6", "v5p:4x8x8", ()),
    ("minimax_m1", "v5p:8x8x8", ()),
)
KEPT = ("fits", "memory", "memory_total", "seconds", "mfu", "tokens_per_second", "chip_hours", "rooflines", "bound_by",
        "losses", "collectives", "refusal", "nearest", "error", "compile_seconds", "host_bytes")  # fmt: skip


def main() -> None:
    """Plans each program, and puts it into the table as soon as it is there."""
    parser = measure.parser(__doc__, "plans")
    parser.add_argument(
        "--only", action="append", help="rows with this in the name of recipe or slice; all of them, if given again"
    )
    parser.add_argument("--config", help="another recipe than those of the table, with its scale")
    parser.add_argument("--topology", action="append", help="slices of --config; may be given again (v5p:4x4x8)")
    parser.add_argument("--programs", default="sft,rl,prefill,decode,transfer")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe --config: sft.length=8192"
    )
    options = parser.parse_args()
    measure.start(cores=2)
    wanted = [(f"configs/{name}.py:full", part, list(changed)) for name, part, changed in FULL]
    if options.config:
        wanted = [(options.config, part, options.set) for part in options.topology or ["v5p:4x4x8"]]
    for config, topology, changed in wanted:
        if all(word in f"{config} {topology}" for word in options.only or ()):
            _plan(config, topology, changed, options.programs.split(","), options.output)
    measure.show(
        "planned", ("recipe", "program", "slice", "GiB", "seconds", "MFU", "compiled in s"), _lines(options.output)
    )


def _plan(config, topology, changed, names, output):
    """One recipe on one slice: a row for each of these programs."""
    import config_file

    from posttrain_jax.errors import UserError
    from posttrain_jax.planning import plan, search
    from posttrain_jax.planning.chips import read_slice
    from posttrain_jax.run import validate

    path, _, scale = config.rpartition(":")
    given = [(f"config.{key}", value) for key, _, value in (pair.partition("=") for pair in changed)]
    made, mistakes = config_file.override(measure.ROOT / path, scale, given)
    if mistakes:
        raise SystemExit("\n".join(mistakes))
    part = read_slice(topology)
    placed = plan.check(validate.recipe_from(made), part)
    for name in plan.programs(names, placed):
        title = f"{placed.name}:{placed.scale} on {part.name}, {search.say(placed)}"
        try:
            row = plan.make(placed, part, [name], log=lambda line: print(line, file=sys.stderr, flush=True))
            row = row["programs"][0]
        except UserError as error:  # the compiler died
            row = {"fits": False, "error": str(error)}
        found = {key: row[key] for key in KEPT if key in row}
        key = {"recipe": f"{placed.name}:{placed.scale}", "changed": changed, "topology": topology, "program": name}
        measure.put(output, "plans", key, {"title": title, **found}, measured=False)


def _lines(output):
    found = []
    for row in json.loads(output.read_text())["plans"]:
        size = f"{row.get('memory_total', 0.0) / GIB:.1f}{'' if row['fits'] else ' (does not fit)'}"
        numbers = (f"{row[key]:.3g}" if key in row else "" for key in ("seconds", "mfu", "compile_seconds"))
        found.append((row["recipe"], row["program"], row["topology"], size, *numbers))
    return found


if __name__ == "__main__":
    main()
