"""Runs several recipes on the same base model, the same tasks and the same tokens, and writes one report.

    python launch/compare.py --configs=configs/kimi_k2.py,configs/glm_4_6.py,configs/minimax_m2.py --workdir=DIR
        [--scale=tiny] [--base=RUN_OR_CONFIG] [--tokens=N] [--seeds=0,1,2] [--every=10] [--dry_run] [--json]

The base is a run's directory, or the supervised fine-tuning of a configuration (the first recipe's). On it each recipe
does its reinforcement learning with its own objective, optimizer, judge, length penalties, groups, curriculum,
temperature and quantisation; model, chat format, tasks, prompts in a step and rows are the base's. Each run is an
ordinary one in DIR/RECIPE-seedN: the same command goes on where it was stopped, and repeats nothing; with another
recipe or seed behind, it runs what is new. What came of it is in DIR/compare.html and DIR/compare.json.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import command_line
import config_file
import devices
import run_directory
from absl import flags

from posttrain_jax.errors import UserError
from posttrain_jax.run import validate
from posttrain_jax.run.comparison import page, plan, results, screen
from posttrain_jax.run.metrics import write_json_atomic
from posttrain_jax.run.recipe import Recipe


def main(arguments: Sequence[str]) -> int:
    """Checks everything first, then runs what is not finished yet, and writes the report after every run."""
    values = _flags()
    command_line.parse(arguments, values, __doc__ or "")
    comparison, makes_base = _comparison(values)
    todo = {comparison.weights: plan.base_run(comparison.base)} if makes_base else {}
    todo |= comparison.runs()
    different = [problem for folder, run in todo.items() for problem in _conflict(folder, run)]
    if different:
        raise UserError("\n".join(different))
    with contextlib.redirect_stdout(sys.stderr) if values.json else contextlib.nullcontext():
        screen.plan(comparison)
        if values.dry_run:
            return 0
        code, failed = _run(comparison, todo)
        if code:
            return code
        found = _report(comparison)
        screen.results(found)
        print(f"written to {comparison.workdir / 'compare.html'} and {comparison.workdir / 'compare.json'}")
    if values.json:
        print(json.dumps(found, indent=2))
    if failed:
        raise UserError("\n".join(failed))
    return 0


def _conflict(folder: Path, run: Recipe) -> list[str]:
    """One line for a run of another configuration, with what was changed but for what follows from it."""
    found = run_directory.conflict(folder, run)
    changed = [line for line in found[:-1] if not line.startswith(("config.phases.", "config.rl.steps "))]
    what = "; ".join(changed or found[:1])
    return [f"--workdir: {folder} holds another run: {what}; choose another --workdir, or undo that"] if found else []


def _run(comparison: plan.Comparison, todo: dict[Path, Recipe]) -> tuple[int, list[str]]:
    """Every run that is not finished; the code of one that was stopped, and those that failed with the reason."""
    command_line.prepare_jax()
    from posttrain_jax.stages import pipeline  # starts JAX, so only when all else is in order

    failed = []
    for number, (folder, run) in enumerate(todo.items(), start=1):
        if (folder / "summary.json").exists():
            print(f"run {number} of {len(todo)}, {folder.name}: finished before", flush=True)
            continue
        print(f"\nrun {number} of {len(todo)}, {folder.name}", flush=True)
        run_directory.claim(folder, run)
        try:
            code = pipeline.run(run, folder)
        except UserError as error:  # one that diverged keeps none of the others from their turn
            if folder == comparison.weights:
                raise
            failed.append(f"{folder.name}: {error}")
            continue
        if code:
            return code, failed
        _report(comparison)
    return 0, failed


def _report(comparison: plan.Comparison) -> dict[str, Any]:
    found = results.read(comparison)
    write_json_atomic(comparison.workdir / "compare.json", found)
    page.write(comparison.workdir / "compare.html", found)
    return found


def _comparison(values: flags.FlagValues) -> tuple[plan.Comparison, bool]:
    """What the command line asks for, and whether its base is to be trained first.

    Raises:
      UserError: with a line for every mistake.
    """
    if not values.configs or not values.workdir:
        missing = "--workdir is missing: where the runs go" if values.configs else "--configs is missing: two or more"
        raise UserError(f"{missing}; such as --configs=configs/kimi_k2.py,configs/glm_4_6.py --workdir=runs/compared")
    paths = [Path(given) for given in values.configs]
    names = [path.stem for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1} | ({plan.BASE} & set(names)))
    if twice:
        raise UserError(f"--configs: {', '.join(twice)} is taken; a recipe is known by its file's name")
    workdir = Path(values.workdir).expanduser().resolve()
    problem = validate.workdir_problem(workdir)
    if problem:
        raise UserError(problem)
    scale = values.scale or _scale(paths)
    recipes = {path.stem: _recipe(path, scale, "--configs") for path in paths}
    given = Path(values.base).expanduser() if values.base else paths[0]
    makes_base = given.suffix == ".py"
    if makes_base:
        base, weights = _recipe(given, scale, "--base"), workdir / plan.BASE
    else:
        base, weights = _trained(given), given.resolve()
    tokens = plan.default_tokens(base) if values.tokens is None else values.tokens
    if tokens < 1:
        raise UserError(f"--tokens={tokens}: no budget; every run needs one, such as --tokens=500000")
    seeds = _seeds(values.seeds)
    return plan.Comparison(base, weights, workdir, recipes, seeds, tokens, values.every), makes_base


def _scale(paths: Sequence[Path]) -> str | None:
    """The largest scale of all recipes that the devices hold; None where one of them knows no scales."""
    with _named("--configs"):
        needs = [config_file.needs(path) for path in paths]
    shared = {scale: max(each[scale] for each in needs) for scale in needs[0] if all(scale in each for each in needs)}
    return devices.choose(shared, devices.attached())[0] if shared else None


def _recipe(path: Path, scale: str | None, flag: str) -> Recipe:
    with _named(flag):
        config = config_file.load(path, scale)
    try:
        return validate.recipe_from(config)
    except validate.InvalidRecipe as error:
        raise UserError("\n".join(f"{path}: {problem}" for problem in error.problems)) from error


def _trained(folder: Path) -> Recipe:
    with _named("--base"):
        base = run_directory.read(folder)
    if not (folder / "checkpoints").exists():
        raise UserError(f"--base={folder}: has no checkpoints/ yet; train it first, or give a configuration file")
    return base


@contextlib.contextmanager
def _named(flag: str) -> Iterator[None]:
    """Mistakes in what a flag of this command names, told with that flag."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub("--(config|workdir)=", f"{flag}=", str(error))) from error


def _seeds(given: Sequence[str]) -> list[int]:
    wrong = [seed for seed in given if not seed.strip().isdecimal()]
    if wrong or not given:
        raise UserError(f"--seeds={','.join(given)}: expected whole numbers with commas between, such as 0,1,2")
    return list(dict.fromkeys(int(seed) for seed in given))


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_list("configs", [], "configuration files, with commas between", flag_values=values)
    flags.DEFINE_string("scale", None, "scale of all of them (what the devices hold)", flag_values=values)
    flags.DEFINE_string("base", None, "a run's directory, or a configuration file (the first)", flag_values=values)
    flags.DEFINE_integer(
        "tokens",
        None,
        "of a run, sampled and trained on (what the base's steps of rl sample at most)",
        flag_values=values,
    )
    flags.DEFINE_list("seeds", ["0"], "a run of each recipe with each", flag_values=values)
    flags.DEFINE_integer(
        "every", 10, "steps between measures of what is held out; 0: at the end", lower_bound=0, flag_values=values
    )
    flags.DEFINE_string("workdir", None, "where the runs and the report go", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "check everything, say what would be done, and exit", flag_values=values)
    flags.DEFINE_boolean("json", False, "print the results as JSON, and all else on stderr", flag_values=values)
    return values


if __name__ == "__main__":
    command_line.run(main)
