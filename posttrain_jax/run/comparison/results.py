"""What the runs of a comparison left on the disk, as one JSON-able mapping: compare.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain_jax.run import report
from posttrain_jax.run.comparison import published
from posttrain_jax.run.comparison.components import COMPONENTS, METRICS, alike, phrases
from posttrain_jax.run.comparison.plan import Comparison

POINTS = 60  # of a curve
TAIL = 0.1  # of a run's tokens: what is called its end

Curves = dict[str, list[tuple[float, float]]]  # metric -> (tokens used, value)


def read(comparison: Comparison) -> dict[str, Any]:
    """Every run as far as it has come, and each recipe's means over its finished runs.

    A curve has a value at each of `POINTS` numbers of tokens, from the first to the last that all of a recipe's runs
    have; between two steps it is linear. ``spread`` is the standard deviation of a sample, None of a single run.
    """
    seeds, own, behind = comparison.seeds, comparison.own(), comparison.behind()
    found = {name: [_run(seed, comparison.folder(name, seed)) for seed in seeds] for name in comparison.recipes}
    level = _common([run for runs in found.values() for run in runs])
    recipes = {}
    for name, runs in found.items():
        for run in runs:
            if level is not None and run["finished"]:
                run["numbers"]["tokens_to_common"] = _reached(run["curves"]["heldout"], level)
        done = [run for run in runs if run["finished"]]
        recipes[name] = {
            "recipe": comparison.recipes[name].name,
            "same_run_as": comparison.twins().get(name),
            "own": {key: values[name] for key, values in own.items()},
            "left_behind": behind[name],
            "mean": {key: _mean([run["numbers"].get(key) for run in done]) for key in _keys(done)},
            "curves": _overlaid([run.pop("curves") for run in runs]),
            "runs": runs,
        }
    base = comparison.weights / "summary.json"
    return {
        "base": {"heldout": _object(base).get("heldout", {}), "fixed": comparison.fixed()},
        "tokens": comparison.tokens,
        "seeds": list(seeds),
        "common_level": level,
        "components": components(comparison),
        "recipes": recipes,
    }


def components(comparison: Comparison) -> dict[str, Any]:
    """Component -> recipe -> what it is here, which recipe before has the same, and what its maker published."""
    runs = {name: comparison.run(name, comparison.seeds[0]) for name in comparison.recipes}
    told = {name: phrases(run) for name, run in runs.items()}
    found = {}
    for key in COMPONENTS:
        here = {name: each[key] for name, each in told.items()}
        same = alike(here)
        found[key] = {
            name: {"here": here[name], "same_as": same.get(name), **_said(runs[name].name, key)} for name in runs
        }
    found[published.RESULT] = {name: _said(run.name, published.RESULT) for name, run in runs.items()}
    return found


def _said(maker: str, component: str) -> dict[str, str | None]:
    told = published.of(maker, component)
    return {"published": told and told.said, "source": told and told.source}


def _run(seed: int, folder: Path) -> dict[str, Any]:
    summary = _object(folder / "summary.json")
    steps = _steps(folder, _object(folder / "config.json").get("stages", ()))
    heldout = summary.get("heldout", {})
    used = steps[-1]["used_tokens"] if steps else 0.0
    tail = [step for step in steps if step["used_tokens"] > (1 - TAIL) * used]
    ends = {key: statistics.mean(found) for key in METRICS if (found := [s[key] for s in tail if key in s])}
    curves = {key: [(step["used_tokens"], step[key]) for step in steps if key in step] for key in METRICS}
    numbers: dict[str, float] = {}
    if heldout:
        numbers["heldout"] = ends["heldout"] = list(heldout.values())[-1]
        inner = [point for point in curves["heldout"] if point[0] < used]
        curves["heldout"] = [(0.0, heldout["base"]), *inner, (used, numbers["heldout"])]
    numbers |= ends
    if steps:
        numbers |= {"tokens": used, "steps": float(len(steps))}
        numbers |= {key: sum(step[key] for step in steps) for key in ("sampled_tokens", "trained_tokens")}
    seconds = [step["seconds"] for step in steps[1:] if "seconds" in step]  # the first compiles
    if seconds:
        numbers["seconds_per_step"] = statistics.median(seconds)
    per_task = list((summary.get("per_task") or {"": {}}).values())[-1]
    return {"seed": seed, "finished": bool(summary), "numbers": numbers, "per_task": per_task, "curves": curves}


def _steps(folder: Path, stages: Sequence[str]) -> list[dict[str, float]]:
    """The numbers of a run's steps, phase after phase, tokens counted from the first one's beginning."""
    told, found, before = report.records(folder), [], 0.0
    for stage in stages:
        steps = [step for _, step in sorted(told.get(stage, {}).items()) if "used_tokens" in step]
        found += [step | {"used_tokens": before + step["used_tokens"]} for step in steps]
        before = found[-1]["used_tokens"] if found else 0.0
    return found


def _common(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """The held-out share with which the weakest of the finished runs ends: all of them have passed it."""
    return min((run["numbers"]["heldout"] for run in runs if run["finished"]), default=None)


def _reached(curve: Sequence[tuple[float, float]], level: float) -> float:
    """The tokens after which a curve, linear between its points, first stands at a level that its end has reached."""
    for (x0, y0), (x1, y1) in zip([curve[0], *curve], curve, strict=False):
        if y1 >= level:
            return x1 if y1 == y0 else x0 + (x1 - x0) * max(level - y0, 0.0) / (y1 - y0)
    return curve[-1][0]


def _overlaid(runs: Sequence[Curves]) -> dict[str, dict[str, list[float]]]:
    """Each metric's mean over the runs that have any of it, on one grid of tokens."""
    found = {}
    for key in METRICS:
        curves = [run[key] for run in runs if len(run[key]) > 1]
        if not curves:
            continue
        low, high = max(c[0][0] for c in curves), min(c[-1][0] for c in curves)
        grid = np.linspace(low, high, POINTS)
        values = np.mean([np.interp(grid, [x for x, _ in curve], [y for _, y in curve]) for curve in curves], axis=0)
        found[key] = {"tokens": [round(x) for x in grid.tolist()], "values": [float(f"{y:.5g}") for y in values]}
    return found


def _keys(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run["numbers"]))


def _mean(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    return {"mean": statistics.mean(known), "spread": statistics.stdev(known) if len(known) > 1 else None}


def _object(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes()) if path.exists() else {}
