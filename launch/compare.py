"""Runs several recipes on the same base model, the same tasks and the same tokens, and writes one report.

    python launch/compare.py --configs=configs/kimi_k2.py,configs/glm_4_6.py,configs/minimax_m2.py --workdir=DIR
        [--scale=tiny] [--base=RUN_OR_CONFIG] [--tokens=N] [--seeds=0,1,2] [--every=10]

The base is a run's directory, or the supervised fine-tuning of a configuration (the first recipe's). On it each recipe
does its reinforcement learning with its own objective, optimizer, rewards, length penalties, groups, curriculum and
temperature; model, chat format, tasks, prompts in a step and rows are the base's. Each run is an ordinary one in
DIR/RECIPE-seedN: the same command goes on where it was stopped, and repeats nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    workdir = Path(values.workdir).expanduser().resolve()
    runs = {workdir / f"{name}-seed{seed}": (name, seed, run) for (name, seed), run in comparison.runs().items()}
    todo = {comparison.weights: plan.base_run(comparison.base)} if makes_base else {}
    todo |= {folder: run for folder, (_, _, run) in runs.items()}
    different = [f"{d} ({folder})" for folder, run in todo.items() for d in run_directory.conflict(folder, run)]
    if different:
        raise UserError("\n".join(different))
    screen.plan(comparison)
    if values.dry_run:
        return 0

    def report() -> dict:
        found = results.read(comparison, {(name, seed): folder for folder, (name, seed, _) in runs.items()})
        write_json_atomic(workdir / "compare.json", found)
        page.write(workdir / "compare.html", found)
        return found

    command_line.prepare_jax()
    from posttrain_jax.stages import pipeline  # starts JAX, so only when all else is in order

    failed = []
    for folder, run in todo.items():
        if (folder / "summary.json").exists():
            continue
        print(f"\n{folder.name}", flush=True)
        run_directory.claim(folder, run)
        try:
            code = pipeline.run(run, folder)
        except UserError as error:  # one that diverged keeps none of the others from their turn
            if folder == comparison.weights:
                raise
            failed.append(f"{folder.name}: {error}")
            continue
        if code:
            return code
        report()
    screen.results(report())
    print(f"written to {workdir / 'compare.html'} and {workdir / 'compare.json'}")
    if failed:
        raise UserError("\n".join(failed))
    return 0


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
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--configs: {', '.join(twice)} more than once; a recipe is known by its file's name")
    problem = validate.workdir_problem(Path(values.workdir).expanduser())
    if problem:
        raise UserError(problem)
    needs = config_file.needs(paths[0])
    scale = values.scale or (devices.choose(needs, devices.attached())[0] if needs else None)
    recipes = {path.stem: _recipe(path, scale) for path in paths}
    given = Path(values.base).expanduser() if values.base else paths[0]
    makes_base = given.suffix == ".py"
    base = _recipe(given, scale) if makes_base else run_directory.read(given)
    weights = (Path(values.workdir).expanduser() / plan.BASE if makes_base else given).resolve()
    if not makes_base and not (weights / "checkpoints").exists():
        raise UserError(f"--base={given}: has no checkpoints/ yet; train it first, or give a configuration file")
    tokens = plan.default_tokens(base) if values.tokens is None else values.tokens
    if tokens < 1:
        raise UserError(f"--tokens={tokens}: no budget; every run needs one, such as --tokens=500000")
    return plan.Comparison(base, weights, recipes, _seeds(values.seeds), tokens, values.every), makes_base


def _recipe(path: Path, scale: str | None) -> Recipe:
    try:
        return validate.recipe_from(config_file.load(path, scale))
    except validate.InvalidRecipe as error:
        raise UserError("\n".join(f"{path}: {problem}" for problem in error.problems)) from error
    except UserError as error:
        raise UserError(str(error).replace("--config=", "--configs: ")) from error


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
        "tokens", None, "that a run samples and trains on (what the base's own steps sample at most)", flag_values=values
    )
    flags.DEFINE_list("seeds", ["0"], "a run of each recipe with each", flag_values=values)
    flags.DEFINE_integer(
        "every", 10, "steps between measures of what is held out; 0: at the end", lower_bound=0, flag_values=values
    )
    flags.DEFINE_string("workdir", None, "where the runs and the report go", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "check everything, say what would be done, and exit", flag_values=values)
    return values


if __name__ == "__main__":
    command_line.run(main)
