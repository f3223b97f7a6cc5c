"""What the runs of a comparison left on the disk, as one JSON-able mapping: compare.json."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain_jax.objectives.defaults import DEFAULTS
from posttrain_jax.run import report
from posttrain_jax.run.comparison.plan import Comparison
from posttrain_jax.run.recipe import Recipe

METRICS = ("reward", "pass_rate", "heldout", "response_length", "entropy", "kl", "clipped")
POINTS = 60  # of a curve
TAIL = 0.1  # of a run's tokens: what is called its end


def read(comparison: Comparison, folders: Mapping[tuple[str, int], Path]) -> dict[str, Any]:
    """Every run as far as it has come, and each recipe's means over its finished runs.

    A curve has a value at each of `POINTS` numbers of tokens, from the first to the last that all of a recipe's runs
    have; between two steps it is linear. ``spread`` is the standard deviation of a sample, None of a single run.
    """
    own = comparison.own()
    recipes = {}
    for name, recipe in comparison.recipes.items():
        runs = [_run(seed, folders[name, seed], comparison.tokens) for seed in comparison.seeds]
        done = [run for run in runs if run["finished"]]
        recipes[name] = {
            "recipe": recipe.name,
            "components": components(recipe),
            "own": {key: values[name] for key, values in own.items()},
            "left_behind": comparison.behind()[name],
            "mean": {key: _mean([run["numbers"].get(key) for run in done]) for key in _keys(done)},
            "curves": _overlaid([run.pop("curves") for run in runs]),
            "runs": runs,
        }
    return {
        "base": {"heldout": _object(comparison.weights / "summary.json").get("heldout", {}), "fixed": comparison.fixed()},
        "tokens": comparison.tokens,
        "seeds": list(comparison.seeds),
        "recipes": recipes,
    }


def components(recipe: Recipe) -> dict[str, str]:
    """What a recipe's post-training is made of, a phrase each."""
    rl, objective, optimizer = recipe.rl, recipe.rl.objective, recipe.optimizer
    settings = getattr(objective, objective.name, None)
    numbers = dataclasses.asdict(settings) if settings else {}
    told = ", ".join(f"{key} {value:g}" for key, value in numbers.items() if value)
    added = [f"PTX {objective.ptx_weight:g}"] * (objective.ptx_weight > 0)
    added += [f"KL {objective.kl_weight:g}"] * (objective.kl_weight > 0)
    own = DEFAULTS[objective.name]
    moments = f"betas {optimizer.beta1:g}/{optimizer.beta2:g}, epsilon {optimizer.epsilon:g}"
    matrices = f"momentum {optimizer.momentum:g}, {optimizer.newton_schulz_steps} iterations"
    clip = f", QK-Clip at {optimizer.qk_clip_threshold:g}" if optimizer.name == "muonclip" else ""
    lengths = [f"penalty {rl.overlong_penalty:g} in the last {rl.overlong_buffer} tokens"] * (rl.overlong_penalty > 0)
    lengths += [f"reward of short answers {rl.length_reward:g}"] * (rl.length_reward > 0)
    lengths += [f"budgets {', '.join(rl.budgets)}"] * bool(rl.budgets)
    lengths += [f"stop after {rl.repetition_window} repeated"] * bool(rl.repetition_window)
    return {
        "objective": " + ".join([f"{objective.name} ({told})" if told else objective.name, *added]),
        "optimizer": f"{optimizer.name}: {moments if optimizer.name == 'adamw' else matrices}{clip};"
        f" rate {rl.optimizer.learning_rate:g}",
        "advantages": f"{objective.advantages or own.advantages}, {objective.aggregation or own.aggregation}",
        "length": "; ".join(lengths) or "none",
        "sampling": f"{rl.group_size} to a prompt at temperature {rl.sampling.temperature:g}, {rl.minibatches} updates,"
        f" {rl.max_rounds} rounds",
        "curriculum": f"by {rl.effort}, up at {rl.promote_at:g}, retired at {rl.retire_at:g}",
        "thinking": f"chat of {recipe.family}{f' {recipe.variant}' if recipe.variant else ''}; here the base's",
    }


def _run(seed: int, folder: Path, tokens: int) -> dict[str, Any]:
    summary = _object(folder / "summary.json")
    told = report.records(folder).get("rl", {})
    steps = [told[number] for number in sorted(told) if "used_tokens" in told[number]]
    heldout = summary.get("heldout", {})
    tail = [step for step in steps if step["used_tokens"] > (1 - TAIL) * tokens] or steps[-1:]
    ends = {key: statistics.mean(found) for key in METRICS if (found := [s[key] for s in tail if key in s])}
    ends.pop("heldout", None)
    numbers = {
        **{f"heldout_{stage}": value for stage, value in heldout.items()},
        **ends,
        **({"tokens": steps[-1]["used_tokens"], "steps": len(steps)} if steps else {}),
        **{key: sum(step[key] for step in steps) for key in ("sampled_tokens", "trained_tokens") if steps},
    }
    seconds = [step["seconds"] for step in steps[1:] if "seconds" in step]  # the first compiles
    if seconds:
        numbers["seconds_per_step"] = statistics.median(seconds)
    curves = {}
    for key in METRICS:
        found = [(step["used_tokens"], step[key]) for step in steps if key in step]
        if key == "heldout" and heldout:
            found = [(0.0, heldout["base"]), *found, (numbers.get("tokens", 0.0), heldout["rl"])]
        curves[key] = found
    per_task = (summary.get("per_task") or {}).get("rl", {})
    return {"seed": seed, "finished": bool(summary), "numbers": numbers, "per_task": per_task, "curves": curves}


def _overlaid(runs: Sequence[Mapping[str, Sequence[tuple[float, float]]]]) -> dict[str, dict[str, list[float]]]:
    """Each metric's mean over the runs that have any of it, on one grid of tokens."""
    found = {}
    for key in METRICS:
        curves = [run[key] for run in runs if len(run[key]) > 1]
        if not curves:
            continue
        low, high = max(c[0][0] for c in curves), min(c[-1][0] for c in curves)
        grid = np.linspace(low, high, POINTS)
        values = np.mean([np.interp(grid, *zip(*curve, strict=True)) for curve in curves], axis=0)
        found[key] = {"tokens": [round(x) for x in grid.tolist()], "values": [float(f"{y:.5g}") for y in values]}
    return found


def _keys(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run["numbers"]))


def _mean(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {"mean": statistics.mean(known), "spread": statistics.stdev(known) if len(known) > 1 else None}


def _object(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.exists() else {}
