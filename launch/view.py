"""Shows trajectories of a run, finished or under way.

    python launch/view.py --workdir=DIR [--stage=rl] [--task=gcd] [--reward=">0.5"] [--sort=length] [--count=3]

The newest first, unless --sort says otherwise; --full unfolds thinking and the results of tools.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import command_line
from absl import flags
from rich.console import Console

from posttrain_jax.errors import UserError
from posttrain_jax.run import trajectories
from posttrain_jax.run.screen import WIDTH


def main(arguments: Sequence[str]) -> int:
    """Reads samples.jsonl and prints what is asked for."""
    values = _flags()
    command_line.parse(arguments, values, __doc__ or "")
    if not values.workdir:
        raise UserError("--workdir is missing: the directory of a run, such as runs/minimax_m2-tiny-seed0")
    wanted = trajectories.Wanted(values.stage, values.step, values.task, values.reward)
    chosen, total = trajectories.choose(Path(values.workdir).expanduser(), wanted, values.sort, values.count)
    width = None if sys.stdout.isatty() else WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    for sample in chosen:
        console.print(trajectories.shown(sample, values.full))
    if total > len(chosen):
        console.print(f"{len(chosen)} of {total:,} trajectories; --count shows more", style="dim")
    return 0


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
    flags.DEFINE_string("stage", None, "only of this stage", flag_values=values)
    flags.DEFINE_integer("step", None, "only of this step", lower_bound=0, flag_values=values)
    flags.DEFINE_string("task", None, "only of this task or world", flag_values=values)
    flags.DEFINE_string("reward", None, "only of such rewards: '>0.5', '<=0' or '1'", flag_values=values)
    flags.DEFINE_string("sort", "step", "highest first: step, reward or length", flag_values=values)
    flags.DEFINE_integer("count", 5, "how many", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("full", False, "thinking and tools' results in full", flag_values=values)
    return values


if __name__ == "__main__":
    command_line.run(main)
