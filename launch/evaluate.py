"""Scores a trained model on held-out reasoning tasks, or on benchmarks, and writes the result as JSON.

    python launch/evaluate.py --workdir=DIR [--tasks=gcd,lcm] [--max_level=2] [--problems=500] [--output=FILE]
    python launch/evaluate.py --workdir=DIR --benchmark=gsm8k:test.jsonl,bfcl:questions/,tasks [--thinking=on,off,256]

Answers are greedy unless a temperature is given; with --samples above 1, pass@k for k = 1, 2, 4, … is
estimated as well (Chen et al. 2021, arXiv 2107.03374). --thinking compares ways to answer: with thinking, without, or
with at most so many tokens of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import command_line
import processes
import run_directory
from absl import flags

from posttrain_jax.data import tasks
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.run.recipe import Recipe


def main(arguments: Sequence[str]) -> int:
    """Loads the weights, answers every problem, writes the scores."""
    values = _flags()
    command_line.parse(arguments, values, __doc__ or "")
    if not values.workdir:
        raise UserError("--workdir is missing: the directory of a run, such as runs/minimax_m2-tiny-seed0")
    if values.samples > 1 and values.temperature == 0:
        raise UserError(f"--samples={values.samples} with --temperature=0 gives equal answers: set --temperature=1")
    mistakes = processes.problems(values)
    if mistakes:
        raise UserError("\n".join(mistakes))
    workdir = Path(values.workdir).expanduser()
    recipe = run_directory.read(workdir)
    names = tuple(values.tasks) or recipe.tasks.names or tasks.TASKS
    level = recipe.tasks.max_level if values.max_level is None else values.max_level
    seed = recipe.tasks.seed if values.seed is None else values.seed
    command_line.prepare_jax()
    benchmarks, modes = tuple(values.benchmark), [_mode(word) for word in values.thinking]
    if benchmarks or modes != [True]:
        asked = benchmarks or ("tasks",)
        return processes.together(
            values, workdir, lambda: _benchmarks(values, recipe, workdir, asked, modes, names, level, seed)
        )
    problems = worlds.heldout(names, level, values.problems or recipe.evaluation.problems, seed)
    return processes.together(values, workdir, lambda: _answer(values, recipe, workdir, problems, names, level, seed))


def _answer(
    values: flags.FlagValues,
    recipe: Recipe,
    workdir: Path,
    problems: list[tasks.Problem],
    names: Sequence[str],
    level: int,
    seed: int,
) -> int:
    """Answers the problems; process 0 writes the scores."""
    import jax

    from posttrain_jax.run.metrics import write_json_atomic
    from posttrain_jax.stages import evaluation, trained
    from posttrain_jax.stages.experience import sample

    model = trained.load(recipe, workdir, **_limits(values, recipe))
    score = evaluation.evaluate(
        model.engine,
        model.weights,
        model.chat,
        problems,
        system=recipe.tasks.system,
        samples=values.samples,
        temperature=values.temperature,
        episodes=recipe.episodes,
    )
    if jax.process_index() != 0:
        return 0
    output = Path(values.output) if values.output else workdir / f"evaluation-{model.stage}-{model.step}.json"
    write_json_atomic(
        output,
        {
            "stage": model.stage,
            "step": model.step,
            "problems": len(problems),
            "tasks": list(names),
            "max_level": level,
            "seed": seed,
            "samples": values.samples,
            "temperature": values.temperature,
            **dataclasses.asdict(dataclasses.replace(score, trajectories=[])),
            "trajectories": [
                {"stage": "heldout", "step": model.step, **sample(model.chat, t)} for t in score.trajectories
            ],
        },
    )
    rows = [(name, f"{rate:6.1%}", "") for name, rate in score.per_task.items()]
    print(f"{model.stage} step {model.step}, {len(problems)} held-out problems")
    print(command_line.table([*rows, *((name, f"{rate:6.1%}", "") for name, rate in score.pass_at.items())]))
    print(f"written to {output}")
    return 0


def _benchmarks(
    values: flags.FlagValues,
    recipe: Recipe,
    workdir: Path,
    benchmarks: Sequence[str],
    modes: Sequence[bool | int],
    names: Sequence[str],
    level: int,
    seed: int,
) -> int:
    """Answers the benchmarks in each way of thinking; process 0 writes the scores."""
    import jax

    from posttrain_jax.run.metrics import write_json_atomic
    from posttrain_jax.stages import trained
    from posttrain_jax.stages.benchmarks import answering, heldout, readers, scores

    with contextlib.ExitStack() as graders:
        questions = []
        for spec in benchmarks:
            if spec == "tasks":
                questions += heldout.read(names, level, values.problems or recipe.evaluation.problems, seed)
            else:
                questions += readers.read(spec, graders, values.problems)
        model = trained.load(recipe, workdir, **_limits(values, recipe))
        found, samples = [], []
        for mode in modes:
            how = {True: "on", False: "off"}[mode] if isinstance(mode, bool) else str(mode)
            answers = answering.answer(
                model.engine,
                model.weights,
                model.chat,
                questions,
                system=recipe.tasks.system,
                samples=values.samples,
                temperature=values.temperature,
                thinking=mode,
            )
            found += scores.scores(questions, answers, values.samples, how)
            pairs = zip(questions, answers, strict=True)
            samples += [answering.sample(question, each, how) for question, several in pairs for each in several]
    if jax.process_index() != 0:
        return 0
    found = scores.side_by_side(found)
    output = Path(values.output) if values.output else workdir / f"benchmarks-{model.stage}-{model.step}.json"
    write_json_atomic(
        output,
        {
            "stage": model.stage,
            "step": model.step,
            "benchmarks": list(benchmarks),
            "samples": values.samples,
            "temperature": values.temperature,
            "interval": "95 %, Wilson score interval over questions",
            "scores": [dataclasses.asdict(score) for score in found],
            "answers": samples,
        },
    )
    print(f"{model.stage} step {model.step}, {len(questions)} questions, {values.samples} answers to each")
    print(scores.table(found))
    print(f"written to {output}")
    return 0


def _mode(word: str) -> bool | int:
    if word.isdecimal() and int(word):
        return int(word)
    if word not in ("on", "off"):
        raise UserError(f"--thinking={word}: expected on, off, or a number of tokens such as 256")
    return word == "on"


def _limits(values: flags.FlagValues, recipe: Recipe) -> dict[str, Any]:
    """The engine's limits that are not the recipe's."""
    own = {name: values[name].value for name in ("max_prompt", "max_response") if values[name].value is not None}
    prompt, response = (own.get(name, getattr(recipe.rollout, name)) for name in ("max_prompt", "max_response"))
    if prompt + response > recipe.model.max_length:
        raise UserError(
            f"--max_prompt={prompt} and --max_response={response} make {prompt + response} positions; "
            f"the model has {recipe.model.max_length}: the longest prompt is {recipe.model.max_length - response}"
        )
    return own


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "directory of the run whose model is scored", flag_values=values)
    flags.DEFINE_list("tasks", [], "task types, with commas between (the recipe's)", flag_values=values)
    flags.DEFINE_list(
        "benchmark", [], "NAME:FILE of gsm8k, math, mbpp, humaneval, ifeval, bfcl; or tasks", flag_values=values
    )
    flags.DEFINE_list("thinking", ["on"], "on, off, or a budget in tokens; one or several", flag_values=values)
    flags.DEFINE_integer("max_prompt", None, "longest prompt (the recipe's)", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("max_response", None, "longest answer (the recipe's)", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("max_level", None, "hardest level (the recipe's)", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "problems",
        None,
        "how many of the tasks (the recipe's), or at most of each benchmark (all)",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer("samples", 1, "answers to each problem", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", 0.0, "0 is greedy", lower_bound=0.0, flag_values=values)
    flags.DEFINE_integer("seed", None, "of the problems (the recipe's)", lower_bound=0, flag_values=values)
    flags.DEFINE_string("output", None, "JSON file (WORKDIR/evaluation-STAGE-STEP.json)", flag_values=values)
    processes.define(values)
    return values


if __name__ == "__main__":
    command_line.run(main)
