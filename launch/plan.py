"""Plans a recipe for a TPU slice without one: will it fit, how long will it take, and what holds it back?

    python launch/plan.py --config=configs/minimax_m2.py:full --topology=v5p:4x4x8 [--config.KEY=VALUE ...]

Every program of the recipe goes through the real TPU compiler, with shapes in place of arrays. What it says is
compiled, not measured. Needs libtpu (pip install -e ".[tpu]"). Results are kept, so the same question again is answered
at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import command_line
import config_file
import devices
import plan_table
from absl import flags

from posttrain_jax.errors import UserError
from posttrain_jax.planning import picture, plan
from posttrain_jax.planning.chips import GIB, Slice, read_slice
from posttrain_jax.run import validate
from posttrain_jax.run.recipe import Recipe


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, compiles what is not known yet, and tells what came of it."""
    values = _flags()
    if command_line.wants_help(arguments):
        print(f"{(__doc__ or '').strip()}\n\n{command_line.flag_table(values)}")
        return 0
    log = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    recipe, part = _read(arguments, values)
    if values.calibrate:
        command_line.prepare_jax()
        from posttrain_jax.planning.calibrate import calibrate  # takes the device

        told: dict[str, Any] = calibrate(recipe, log)
        print(json.dumps(told, indent=2) if values.json else plan_table.calibration(told))
        return 0
    assert part is not None
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the compiler needs no device, and must not take one
    if values.search:
        names = plan.programs(values.programs or recipe.kinds[:1], recipe)
        rows = plan.ranked(recipe, part, names, most=values.candidates, log=log)
        told = {"topology": part.name, "programs": names, "measured": False, "candidates": rows}
        print(json.dumps(told, indent=2) if values.json else plan_table.candidates(told))
        return 0
    recipe = plan.check(recipe, part)
    names = plan.programs(values.programs, recipe)
    told = plan.make(recipe, part, names, log=log, keep=Path(values.keep) if values.keep else None)
    if values.output:
        Path(values.output).write_text(picture.svg(told))
        log(f"picture in {values.output}")
    print(json.dumps(told, indent=2) if values.json else plan_table.table(told))
    return 0


def _read(arguments: Sequence[str], values: flags.FlagValues) -> tuple[Recipe, Slice | None]:
    """The recipe, and the slice unless the attached device takes its place; every mistake is told at once."""
    given_config = config_file.argument(arguments)
    if not given_config:
        raise UserError("--config is missing; for instance --config=configs/minimax_m2.py:full")
    name, _, scale = given_config.partition(":")
    path = Path(name)
    plain = config_file.load(path, scale or None)

    def boolean(name: str) -> bool:
        return (name in values and bool(values[name].boolean)) or config_file.is_boolean(plain, name)

    given, mistakes = command_line.split(arguments, values, boolean)
    mistakes += command_line.assign([pair for pair in given if not pair[0].startswith("config.")], values)
    part = None
    if not values.topology and not values.calibrate:
        mistakes.append("--topology is missing; for instance --topology=v5p:4x4x8")
    elif values.topology:
        try:
            part = read_slice(values.topology)
        except UserError as error:
            mistakes.append(str(error))
    needs = config_file.needs(path) if not scale else {}
    if needs:  # as training would choose, were the slice attached
        there = devices.Attached(part.name, part.devices * part.chip.hbm / GIB) if part else devices.attached()
        scale, _ = devices.choose(needs, there)
    config, wrong = config_file.override(path, scale or None, [p for p in given if p[0].startswith("config.")])
    recipe, problems = validate.read(config)
    mistakes += wrong + problems
    try:
        plan.programs(values.programs, recipe)
    except UserError as error:
        mistakes.append(str(error))
    if mistakes:
        raise validate.InvalidRecipe(mistakes)
    return recipe, part


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "configuration file, with an optional :SCALE", flag_values=values)
    flags.DEFINE_string("topology", None, "chip and chips along each axis, such as v5p:4x4x8", flag_values=values)
    flags.DEFINE_list("programs", [], "some of sft, rl, prefill, decode, transfer (the recipe's)", flag_values=values)
    flags.DEFINE_boolean("json", False, "print JSON instead of a table", flag_values=values)
    flags.DEFINE_string("output", None, "SVG file for a picture of the memory", flag_values=values)
    flags.DEFINE_boolean("search", False, "try other meshes and remat policies, and rank them", flag_values=values)
    flags.DEFINE_integer("candidates", 8, "how many --search tries", lower_bound=1, flag_values=values)
    flags.DEFINE_string("keep", None, "directory for the compiled HLO text; compiles anew", flag_values=values)
    flags.DEFINE_boolean("calibrate", False, "compare with a step on the attached device", flag_values=values)
    return values


if __name__ == "__main__":
    command_line.run(main)
