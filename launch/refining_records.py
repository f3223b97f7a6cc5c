"""The part of launch/synthesize.py that works over records that are there: its flags, its checks, what it shows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import command_line
import generating
from absl import flags

from posttrain_jax.errors import UserError

MAKING = ("worlds", "tools", "pairs", "judge", "simulate_user")  # flags without a meaning here


def refine(values: Any, out: Path) -> int:
    """Works over the records that are there."""
    from posttrain_jax.rewards.judges.judge import JudgeFailed
    from posttrain_jax.synthesis import near_duplicates, produce, refining

    for name in MAKING:
        if values[name].value:
            raise UserError(f"--{name} is of records that are made, and --records works over those that are there")
    chosen = values.steps or list(refining.STEPS[:1])
    for name in chosen:
        if name not in refining.STEPS:
            near = command_line.nearest(name, list(refining.STEPS))
            raise UserError(f"--steps={','.join(chosen)}: no step {name!r}; the nearest is {near}")
    rephrase = "rephrase" in chosen
    if rephrase and values.generator == "procedural":
        raise UserError(
            "--steps=rephrase: other words take a model, and --generator=procedural has none; name a URL that speaks"
            " OpenAI's chat completions, such as --generator=http://HOST:8000/v1"
        )
    inputs = refining.Inputs(values.records)
    if clash := next((file for file in inputs.files if Path(file).resolve().parent == out.resolve()), None):
        raise UserError(f"--out={out}: {clash} is read from there; name another folder")
    steps = refining.Steps(
        threshold=values.threshold if "deduplicate" in chosen else None,
        styles=_styles(values.styles) if rephrase else (),
        copies=values.copies,
        held=near_duplicates.held_out(generating.texts(values.evaluation)),
        generator=values.model if rephrase else "",
        seed=values.seed,
    )
    names = ("threshold",) if "deduplicate" in chosen else ()
    names += ("generator", "model", "max_tokens", "temperature", "copies", "seed") if rephrase else ()
    settings = {name: values[name].value for name in names} | {"steps": sorted(chosen), "styles": list(steps.styles)}
    settings |= {"records": inputs.digest(), "evaluation": generating.digest(generating.texts(values.evaluation))}

    async def refined() -> None:
        with generating.endpoint(values, out) if rephrase else contextlib.nullcontext() as endpoint:
            work = refining.Refining(inputs, steps, endpoint.ask if endpoint else None)
            many = {"count": len(work), "most": len(work), "concurrency": values.concurrency}
            with generating.progress(len(work)) as told:
                await produce.produce(out, work.make, settings, told=told, **many)

    try:
        asyncio.run(refined())
    except JudgeFailed as error:
        raise UserError(f"{error}; the same command goes on from here") from error
    _show_refined(out, refining.reported(out), len(inputs))
    return 0


def _styles(given: Sequence[str]) -> list[str]:
    """How requests are to be said again; a language by its letters."""
    from posttrain_jax.synthesis.rephrasing import LANGUAGES, STYLES

    return [f"in {LANGUAGES[style]}" if style in LANGUAGES else style for style in given or STYLES]


def _show_refined(out: Path, report: dict[str, Any], read: int) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"{report['kept']:,} of {read:,} records kept in {out / 'records.jsonl'}")
    for name in ("rephrased", "dropped"):
        if report[name]:
            console.print(f"{name}: {', '.join(f'{key} {number:,}' for key, number in report[name].items())}")
    console.print(f"each that was dropped, with its reason: {out / 'rejected.jsonl'}")


def define(values: flags.FlagValues) -> None:
    """The flags of the steps."""
    flags.DEFINE_list(
        "records", [], "files, folders or patterns of records to work over; none are made then", flag_values=values
    )
    flags.DEFINE_list("steps", [], "of --records: deduplicate (alone unless given), rephrase", flag_values=values)
    flags.DEFINE_float(
        "threshold",
        0.8,
        "similarity of near-duplicates: shared runs of five words",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_list(
        "styles", [], "how requests are rephrased, in turn (five ways); en and zh translate", flag_values=values
    )
    flags.DEFINE_integer("copies", 1, "of each record that are rephrased", lower_bound=1, flag_values=values)
