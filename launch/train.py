"""Runs a recipe from a seed to a post-trained model, or goes on with a run that was stopped.

    python launch/train.py --config=configs/minimax_m2.py[:SCALE] [--workdir=DIR] [--config.KEY=VALUE ...]

SCALE is tiny (a laptop), small (one GPU or one TPU host) or full (a TPU pod); without one, the largest that the
attached devices hold. The same command again goes on from the last checkpoint in the same directory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import command_line
import config_file
import devices
import processes
import run_directory
from absl import flags

from posttrain_jax.errors import UserError
from posttrain_jax.run import validate
from posttrain_jax.run.outline import describe
from posttrain_jax.run.recipe import Recipe


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, checks everything that can be checked without a device, and starts the stages."""
    values = _flags()
    given_config = config_file.argument(arguments)
    if command_line.wants_help(arguments):
        print(_help(values, given_config))
        return 0
    if not given_config:
        example = next(iter(sorted(config_file.RECIPES.glob("*.py"))), "FILE.py")
        raise UserError(f"--config is missing; for instance --config=configs/{Path(example).name}")

    path, scale, why = _choose_scale(given_config)
    plain = config_file.load(path, scale)

    def boolean(name: str) -> bool:
        return (name in values and bool(values[name].boolean)) or config_file.is_boolean(plain, name)

    given, mistakes = command_line.split(arguments, values, boolean)
    mistakes += command_line.assign([pair for pair in given if not pair[0].startswith("config.")], values)
    config, wrong = config_file.override(path, scale, [pair for pair in given if pair[0].startswith("config.")])
    recipe, problems = validate.read(config)
    workdir = Path(values.workdir).expanduser() if values.workdir else run_directory.default(recipe)
    problem = validate.workdir_problem(workdir)
    mistakes += processes.problems(values) + wrong + problems + ([problem] if problem else [])
    if mistakes:
        raise validate.InvalidRecipe(mistakes)

    if values.print_config:
        print(json.dumps(config.to_dict(), indent=2))
        return 0
    if why:
        print(why, flush=True)
    different = run_directory.conflict(workdir, recipe)
    if different:
        raise UserError("\n".join(different))
    if values.dry_run:
        _print_header(recipe, workdir)
        return 0

    def work() -> int:
        from posttrain_jax.stages import pipeline  # starts JAX, so only when all else is in order

        run_directory.claim_together(workdir, recipe)
        return pipeline.run(recipe, workdir)

    command_line.prepare_jax()
    return processes.together(values, workdir, work)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "configuration file, with an optional :SCALE", flag_values=values)
    flags.DEFINE_string("workdir", None, "where results go (runs/RECIPE-SCALE-seedN)", flag_values=values)
    flags.DEFINE_boolean("print_config", False, "print the resolved configuration and exit", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "check everything, say what would be done, and exit", flag_values=values)
    processes.define(values)
    return values


def _choose_scale(given: str) -> tuple[Path, str | None, str]:
    """Path and scale of ``FILE[:SCALE]``; the last item says why a scale was chosen, empty when it was given."""
    name, colon, scale = given.partition(":")
    path = Path(name)
    if colon:
        return path, scale, ""
    needs = config_file.needs(path)
    if not needs:
        return path, None, ""
    scale, why = devices.choose(needs, devices.attached())
    return path, scale, why


def _help(values: flags.FlagValues, given_config: str | None) -> str:
    """Usage, flags, and the field table with the values of the scale asked for."""
    name, _, scale = (given_config or str(config_file.RECIPES / "minimax_m2.py")).partition(":")
    recipe, _ = validate.structure(config_file.load(Path(name), scale or "tiny"))
    return "\n\n".join(
        (
            (__doc__ or "").strip(),
            "Flags, with defaults:\n" + command_line.flag_table(values),
            f"Fields of the configuration, with their values at scale {recipe.scale}:\n"
            + command_line.table(config_file.rows(recipe)),
        )
    )


def _print_header(recipe: Recipe, workdir: Path) -> None:
    rows = {**describe(recipe), "workdir": str(workdir)}
    for name, value in rows.items():
        print(f"{name:<12}{value}")


if __name__ == "__main__":
    command_line.run(main)
