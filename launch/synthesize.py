"""Agentic training data from seeds: tools evolved, tasks drawn, trajectories verified.

    python launch/synthesize.py --out=DIR --count=3000 [--worlds=shop,bank] [--generator=procedural|URL] [--seed=0]
    python launch/synthesize.py --out=DIR --records=FILE,… --steps=deduplicate,rephrase [--generator=URL]

DIR/records.jsonl is for config.sft.data. The same command goes on where it was stopped, and gives the same file; a
larger --count adds to it. With a URL that speaks OpenAI's chat completions, a model plays the tasks, and only what the
worlds reward is kept; its key is read from OPENAI_API_KEY.

With --records, records that are there are worked over instead: near-duplicates are left out, requests said in other
words by the model behind the URL.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import command_line
import generating
import refining_records
from absl import flags

from posttrain_jax.errors import UserError

PATIENCE = 4  # attempts for each record that is wanted, before too few are accepted


def main(arguments: Sequence[str]) -> int:
    """Makes the records and what stands beside them."""
    values = _flags()
    command_line.parse(arguments, values, __doc__ or "")
    if not values.out:
        raise UserError("--out names no folder: python launch/synthesize.py --out=DIR")
    if values.records:
        return refining_records.refine(values, Path(values.out).expanduser())
    if values.steps:
        raise UserError(f"--steps={','.join(values.steps)} works on records that are there: name --records=FILE")
    from posttrain_jax.rewards.judges.judge import JudgeFailed
    from posttrain_jax.synthesis import finished

    names, real = _worlds(values.worlds), _real(values.tools)
    out = Path(values.out).expanduser()
    try:
        counts = asyncio.run(_produced(values, names, real, out))
    except JudgeFailed as error:
        raise UserError(f"{error}; the same command goes on from here") from error
    report = finished.described(out, values.attempts)
    if values.pairs:
        report["pairs"] = asyncio.run(finished.paired(out, _tasks(values, names, real), values.pairs))
    _show(out, report)
    if counts.accepted < values.count:
        raise UserError(f"{counts.accepted} of --count={values.count} records after {counts.tried} attempts")
    return 0


async def _produced(values: Any, names: list[str], real: list, out: Path) -> Any:
    from posttrain_jax.synthesis import models, near_duplicates, procedural, produce

    task, held = _tasks(values, names, real), near_duplicates.held_out(generating.texts(values.evaluation))
    with generating.endpoint(values, out) as endpoint:

        async def make(index: int) -> produce.Attempt:
            made = await task(index)
            if endpoint is None:
                attempt = await procedural.attempt(made)
            else:
                user = models.AskedUser(endpoint.ask, made.variant.persona) if values.simulate_user else None
                policy, judge = models.of_endpoint(endpoint), endpoint.ask if values.judge else None
                attempt = await models.attempt(made, policy, values.model, turns=values.turns, user=user, judge=judge)
            if held and attempt.record and near_duplicates.overlaps(_said(attempt.record), held):
                return produce.Attempt(index, None, "in the evaluation data")
            return attempt

        with generating.progress(values.count) as told:
            return await produce.produce(
                out,
                make,
                _settings(values, names, real),
                count=values.count,
                concurrency=values.concurrency,
                most=PATIENCE * values.count * values.attempts,
                told=told,
            )


def _tasks(values: Any, names: list[str], real: list):
    from posttrain_jax.synthesis import tasks

    return lambda index: tasks.task(index, names, values.seed, values.max_level, real, values.attempts)


def _settings(values: Any, names: list[str], real: list) -> dict[str, Any]:
    """What the records depend on, and how many are wanted does not."""
    kept = {name: values[name].value for name in ("seed", "max_level", "generator", "attempts")}
    if values.generator != "procedural":
        own = ("model", "max_tokens", "temperature", "turns", "judge", "simulate_user")
        kept |= {name: values[name].value for name in own}
    tools = hashlib.sha256(json.dumps(real, sort_keys=True).encode()).hexdigest() if real else ""
    return {
        **kept,
        "worlds": names,
        "tools": tools,
        "evaluation": generating.digest(generating.texts(values.evaluation)),
    }


def _worlds(given: str) -> list[str]:
    from posttrain_jax.synthesis.verbs import VERBS

    names = [name.strip() for name in given.split(",") if name.strip()] or list(VERBS)
    for name in names:
        if name not in VERBS:
            near = command_line.nearest(name, list(VERBS))
            raise UserError(f"--worlds={given}: no world {name!r} that can be varied; the nearest is {near}")
    return names


def _real(given: Sequence[str]) -> list[dict[str, Any]]:
    from posttrain_jax.synthesis import tool_lists

    return [tool for file in given for tool in tool_lists.read(file)]


def _said(record: Any) -> str:
    return "\n".join(str(message["content"]) for message in record.messages if message["role"] == "user")


def _show(out: Path, report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"{report['combinations']:,} verified combinations of tools and task in {out / 'records.jsonl'}")
    places = len(report["application"])
    console.print(f"{report['toolsets']:,} toolsets of {report['tools']:,} tools, {places} applications")
    for name in ("world", "perturbed", "outcomes", "rejected"):
        if report[name]:
            console.print(f"{name}: {', '.join(f'{key} {number:,}' for key, number in report[name].items())}")
    if "pairs" in report:
        console.print(f"{report['pairs']:,} preference pairs in {out / 'pairs.jsonl'}")
    console.print(f"to read: {out / 'sample.html'}, {out / 'coverage.svg'}, {out / 'report.json'}")


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "folder; what an earlier run left there is continued", flag_values=values)
    flags.DEFINE_integer("count", 3000, "records", lower_bound=1, flag_values=values)
    flags.DEFINE_string("worlds", "", "worlds between commas (all)", flag_values=values)
    flags.DEFINE_integer("max_level", 3, "hardest level of a world", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of all that is drawn", flag_values=values)
    flags.DEFINE_string(
        "generator", "procedural", "procedural, or a URL that speaks OpenAI's chat completions", flag_values=values
    )
    flags.DEFINE_string("model", "default", "model behind the URL", flag_values=values)
    flags.DEFINE_integer("max_tokens", 4096, "tokens of an answer of the model", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", 1.0, "of the model", lower_bound=0.0, flag_values=values)
    flags.DEFINE_integer("turns", 30, "answers of an episode of the model", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("tries", 5, "of a request to the model, if it fails", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("attempts", 1, "at each task; more than one tells pass@1", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean(
        "judge", False, "the model also checks trajectories against the task's rubrics", flag_values=values
    )
    flags.DEFINE_boolean("simulate_user", False, "the model also plays the user", flag_values=values)
    flags.DEFINE_list(
        "tools", [], "files of real tools to distract with: functions, OpenAPI, MCP's tools/list", flag_values=values
    )
    flags.DEFINE_list(
        "evaluation", [], "files; records that share 13 words with a line of them are left out", flag_values=values
    )
    flags.DEFINE_integer(
        "pairs", 0, "records of which preference pairs are made as well", lower_bound=0, flag_values=values
    )
    refining_records.define(values)
    flags.DEFINE_integer("concurrency", 16, "tasks at a time", lower_bound=1, flag_values=values)
    return values


if __name__ == "__main__":
    command_line.run(main)
