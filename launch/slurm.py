"""Trains on a GPU cluster that SLURM keeps: one process a GPU, requeued until the run has ended.

    python launch/slurm.py ACTION --name=NAME [--nodes=N] [--gpus=8] [--time=24:00:00] [-- --config=… …]

  run      launch/train.py with what follows --, in a batch job (launch/slurm.sh)
  status   of the job     logs   its last lines     delete   SIGTERM, upon which it saves, and no new start

The directory this is started from, and the Python, must be the same on every node.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import cluster
import command_line
from absl import flags

from posttrain_jax.errors import UserError

ACTIONS = ("run", "status", "logs", "delete")
LOGS = "runs/slurm"
# the limits that sbatch understands: minutes, minutes:seconds, hours:…, days-hours, days-hours:…
TIME = re.compile(r"\d+|\d+:\d+(:\d+)?|\d+-\d+(:\d+){0,2}")


def main(arguments: Sequence[str]) -> int:
    """Does one action; the exit code is SLURM's."""
    own, train = cluster.split(arguments)
    action, own = cluster.action(own, ACTIONS)
    values = _flags()
    command_line.parse(["--help"] if action == "help" else own, values, __doc__ or "")
    name = cluster.name(values.name)
    shell = cluster.Shell(values.dry_run)
    if action == "run":
        command = _submit(values, cluster.training(train, remote=False))
        return shell.run("mkdir", "-p", LOGS) or shell.run(*command)
    if action == "status":
        return shell.run("squeue", "--me", f"--name={name}")
    if action == "logs":
        return shell.run("tail", "-n", str(values.lines), *["-F"] * values.follow, f"{LOGS}/{name}.log")
    return shell.run("scancel", "--me", f"--name={name}")


def _submit(values: flags.FlagValues, train: list[str]) -> list[str]:
    """sbatch with all that slurm.sh asks for; the signal goes to the processes, not to the script around them."""
    if not TIME.fullmatch(values.time):
        raise UserError(f"--time={values.time}: no time limit; the nearest is {_nearest_time(values.time)}")
    size = [f"--nodes={values.nodes}", f"--gpus-per-node={values.gpus}", f"--ntasks-per-node={values.gpus}"]
    end = [f"--time={values.time}", f"--signal=TERM@{values.grace}", "--requeue"]
    out = [f"--output={LOGS}/{values.name}.log", "--open-mode=append"]
    script = [str(cluster.ROOT / "launch" / file) for file in ("slurm.sh", "train.py")]  # SLURM copies the first away
    more = shlex.split(values.sbatch_flags)
    return ["sbatch", f"--job-name={values.name}", *size, *end, *out, *more, *script, *train]


def _nearest_time(given: str) -> str:
    numbers = re.findall(r"\d+", given)
    return f"{numbers[0]}:00:00" if numbers else "24:00:00"


def _flags() -> flags.FlagValues:
    values = cluster.flags_of_all()
    flags.DEFINE_integer("nodes", 1, "machines", 1, flag_values=values)
    flags.DEFINE_integer("gpus", 8, "GPUs of each machine; each has a process", 1, flag_values=values)
    flags.DEFINE_string("time", "24:00:00", "limit of one start; the next goes on", flag_values=values)
    flags.DEFINE_integer("grace", 300, "seconds from SIGTERM to the limit, to save in", 60, flag_values=values)
    flags.DEFINE_string(
        "sbatch_flags", "", "more flags for sbatch, such as '--partition=gpu --account=lab'", flag_values=values
    )
    return values


if __name__ == "__main__":
    command_line.run(main)
