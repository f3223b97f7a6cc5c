"""Trains on TPUs of Google Kubernetes Engine (v5e, v5p, v6e, TPU7x): xpk makes the cluster and submits the workload.

    python launch/gke.py ACTION --cluster=CLUSTER [--name=NAME] [--type=tpu7x-256] [--slices=N] [-- --config=… …]

  create_cluster   node pools for --slices of --type: --spot, --on_demand or --reservation=NAME
  run              launch/train.py with what follows --; Kubernetes starts it again after preemption and exit code 75
  status           the workloads of the cluster     logs             of one worker, or of all
  delete           the workload                     delete_cluster   all of it

The image is this clone on python:3.12, built by xpk, unless --image names one that holds an installed clone.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import cluster
import command_line
from absl import flags

from posttrain_jax.errors import UserError

ACTIONS = ("create_cluster", "run", "status", "logs", "delete", "delete_cluster")
CONTAINER = "jax-tpu"  # xpk's name for it


def main(arguments: Sequence[str]) -> int:
    """Does one action; the exit code is xpk's or kubectl's."""
    own, train = cluster.split(arguments)
    action, own = cluster.action(own, ACTIONS)
    values = _flags()
    command_line.parse(["--help"] if action == "help" else own, values, __doc__ or "")
    cluster.name(values.cluster, "cluster")
    commands = {
        "create_cluster": lambda: _xpk(values, "cluster", "create", *_size(values), *_tier(values)),
        "run": lambda: _run(values, train),
        "status": lambda: _xpk(values, "workload", "list"),
        "logs": lambda: _logs(values),
        "delete": lambda: _xpk(values, "workload", "delete", f"--workload={cluster.name(values.name)}", "--force"),
        "delete_cluster": lambda: _xpk(values, "cluster", "delete", "--force"),
    }
    return cluster.Shell(values.dry_run).run(*commands[action]())


def _run(values: flags.FlagValues, train: list[str]) -> list[str]:
    """The workload: a Kubernetes JobSet of one process a host.

    ``exec`` lets SIGTERM reach the trainer itself; Kubernetes reads ``$$`` as one ``$``.
    """
    python = shlex.join(["python", "-u", "launch/train.py", *cluster.training(train, remote=True)])
    if values.image:
        command, image = f"exec {python}", [f"--docker-image={values.image}"]
    else:
        command = f"pip install --quiet --editable '.[tpu]' && exec {python}"
        image = ["--base-docker-image=python:3.12", f"--script-dir={cluster.ROOT}"]
    again = [f"--max-restarts={values.restarts}", f"--restart-on-exit-codes={cluster.SAVED}"]
    grace = f"--termination-grace-period-seconds={values.grace}"
    name = f"--workload={cluster.name(values.name)}"
    what = f"--command={command.replace('$', '$$')}"
    return _xpk(values, "workload", "create", name, *_size(values), *image, *again, grace, what)


def _logs(values: flags.FlagValues) -> list[str]:
    """kubectl's log of the pods that carry the workload's labels."""
    labels = [f"jobset.sigs.k8s.io/jobset-name={cluster.name(values.name)}"]
    if values.worker != "all":
        labels.append(f"batch.kubernetes.io/job-completion-index={values.worker}")
    if values.slice != "all":
        labels.append(f"jobset.sigs.k8s.io/job-index={values.slice}")
    shown = [f"--tail={values.lines}", "--prefix", "--max-log-requests=2000", *["--follow"] * values.follow]
    return ["kubectl", "logs", f"--selector={','.join(labels)}", f"--container={CONTAINER}", *shown]


def _xpk(values: flags.FlagValues, noun: str, verb: str, *arguments: str) -> list[str]:
    where = [f"--{flag}={values[flag].value}" for flag in ("zone", "project") if values[flag].value]
    return ["xpk", noun, verb, f"--cluster={values.cluster}", *arguments, *where]


def _size(values: flags.FlagValues) -> list[str]:
    cluster.generation(values.type)
    return [f"--tpu-type={values.type}", f"--num-slices={values.slices}"]


def _tier(values: flags.FlagValues) -> list[str]:
    tiers = ["--spot"] * values.spot + ["--on-demand"] * values.on_demand
    tiers += [f"--reservation={values.reservation}"] if values.reservation else []
    if len(tiers) != 1:
        raise UserError("choose one of --spot, --on_demand and --reservation=NAME")
    return tiers


def _flags() -> flags.FlagValues:
    values = cluster.flags_of_slices()
    flags.DEFINE_string("cluster", None, "of Kubernetes", flag_values=values)
    flags.DEFINE_boolean("spot", False, "create_cluster: cheaper machines that may be taken away", flag_values=values)
    flags.DEFINE_boolean("on_demand", False, "create_cluster: machines at their full price", flag_values=values)
    flags.DEFINE_string("reservation", None, "create_cluster: machines of this reservation", flag_values=values)
    flags.DEFINE_string(
        "image", None, "run: a container image with an installed clone as its directory", flag_values=values
    )
    flags.DEFINE_integer(
        "restarts", 50, "run: how often a preempted or stopped workload starts again", 0, flag_values=values
    )
    flags.DEFINE_integer("grace", 120, "run: seconds between SIGTERM and SIGKILL, to save in", 1, flag_values=values)
    return values


if __name__ == "__main__":
    command_line.run(main)
