"""Trains on TPU VMs (v5e, v5p, v6e): gcloud asks for a queued resource, and every worker runs launch/train.py.

    python launch/tpu_vm.py ACTION --name=NAME --zone=ZONE [--type=v5p-256] [--slices=N] [--spot] [-- --config=… …]

  watch    all of it, for as long as it takes: create, wait, install, run, and again after every preemption
  create   asks for the machines          wait     until they are there
  install  copies this clone to all       run      launch/train.py with what follows --; lives on when ssh ends
  status   of machines and run            logs     the last lines of one worker or of all
  stop     SIGTERM: saves, then ends      delete   gives the machines back, with whatever runs there

TPU7x has no TPU VMs: use launch/gke.py.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cluster
import command_line
from absl import flags

from posttrain_jax.errors import UserError

ACTIONS = ("watch", "create", "wait", "install", "run", "status", "logs", "stop", "delete")
SENT = ("setup.py", "pyproject.toml", "README.md", "posttrain_jax", "pallas_kernels", "launch", "configs")
WORKER = "posttrain_jax/launch/worker.sh"
LOST = ("SUSPENDED", "FAILED")
FINAL = (0, 2)  # finished; bad input, which no second start mends
# What a rehearsal of `watch` is told: nothing is there, then the machines are, then the run has ended well.
SMOOTH = ("", "{name}\tACTIVE", "posttrain_jax: absent", "{name}\tACTIVE", "posttrain_jax: exited 0")


def main(arguments: Sequence[str]) -> int:
    """Does one action; the exit code is that of the command which failed, or of the run."""
    own, train = cluster.split(arguments)
    action, own = cluster.action(own, ACTIONS)
    values = _flags()
    command_line.parse(["--help"] if action == "help" else own, values, __doc__ or "")
    machines = Machines(values, train if action in ("run", "watch") else None, create=action in ("create", "watch"))
    return getattr(machines, action)()


class Machines:
    """The machines of one queued resource, and the run on them."""

    def __init__(self, values: flags.FlagValues, train: list[str] | None, *, create: bool):
        self.name = cluster.name(values.name)
        self.values = values
        answers = (answer.format(name=self.name) for answer in SMOOTH)
        self.shell = cluster.Shell(values.dry_run, answers)
        self.train = None if train is None else cluster.training(train, remote=True)
        if not values.zone:
            raise UserError("--zone is missing, such as --zone=us-east5-a")
        if values.spot and values.reserved:
            raise UserError("--spot and --reserved: choose one")
        if create:
            kind = cluster.generation(values.type)
            if kind.runtime is None:
                raise UserError(f"--type={values.type}: {kind.name} has no TPU VMs; use python launch/gke.py")
            self.runtime = kind.runtime

    def create(self) -> int:
        values = self.values
        many = [f"--node-count={values.slices}", f"--node-prefix={self.name}"]
        nodes = many if values.slices > 1 else [f"--node-id={self.name}"]
        tier = ["--spot"] * values.spot + ["--reserved"] * values.reserved
        kind = [f"--accelerator-type={values.type}", f"--runtime-version={self.runtime}"]
        return self._gcloud("create", *nodes, *kind, *tier, *shlex.split(values.create_flags))

    def wait(self) -> int:
        while True:
            code, state = self._state()
            if code or state == "ACTIVE" or self.values.dry_run:
                return code
            if not state or state in LOST:
                raise UserError(f"--name={self.name}: {state or 'no such queued resource'}; delete and create it")
            self._say(state)
            self.shell.pause(self.values.poll)

    def install(self) -> int:
        archive = str(Path(tempfile.gettempdir()) / f"posttrain_jax-{self.name}.tar.gz")
        unpack = "rm -rf posttrain_jax && mkdir posttrain_jax && tar -xzf posttrain_jax.tar.gz -C posttrain_jax"
        prepare = shlex.join(["bash", WORKER, "install", *filter(None, [self.values.nfs])])
        return (
            self.shell.run("tar", "-czf", archive, "--exclude=__pycache__", "-C", str(cluster.ROOT), *SENT)
            or self._gcloud("scp", archive, f"{self.name}:posttrain_jax.tar.gz", "--node=all", "--worker=all")
            or self._everywhere(f"{unpack} && {prepare}")
        )

    def run(self) -> int:
        return self._everywhere(shlex.join(["bash", WORKER, "start", *(self.train or ())]))

    def status(self) -> int:
        code, state = self._state()
        self._say(state or "none")
        return code or (self._everywhere(_STATUS) if state == "ACTIVE" or self.values.dry_run else 0)

    def logs(self) -> int:
        tail = ["tail", "-n", str(self.values.lines), *["-F"] * self.values.follow, "posttrain_jax.log"]
        chosen = f"--node={self.values.slice}", f"--worker={self.values.worker}"
        return self._gcloud("ssh", *chosen, f"--command={shlex.join(tail)}")

    def stop(self) -> int:
        return self._everywhere(f"bash {WORKER} stop")

    def delete(self) -> int:
        return self._gcloud("delete", "--force", "--quiet")

    def watch(self) -> int:
        """Looks, does the one thing that is missing, and looks again, until the run has ended for good."""
        crashes = refusals = 0
        while True:
            code, ended = self._mend()
            if ended is not None:
                crashes += ended not in (*FINAL, cluster.SAVED)
                if ended in FINAL or crashes > self.values.retries:
                    return ended
                code = self.run()
            refusals = refusals + 1 if code else 0
            if refusals > self.values.retries:
                return code
            self.shell.pause(self.values.poll)

    def _mend(self) -> tuple[int, int | None]:
        """Exit code of what was done so that machines are there and run, and of the run if it has ended."""
        code, state = self._state()
        progress = self._progress() if state == "ACTIVE" else ""
        self._say(", ".join(word for word in (state or "none", progress) if word))
        if code:
            return code, None
        if not state:
            return self.create(), None
        if state in LOST:
            return self.delete(), None
        if progress == "absent":
            return self.install() or self.run(), None
        return 0, int(progress.split()[1]) if progress.startswith("exited") else None

    def _state(self) -> tuple[int, str]:
        """Exit code of gcloud, and the state of the queued resource, empty when there is none."""
        listing = f"--zone={self.values.zone}", *self._project(), "--format=value(name.basename(),state.state)"
        code, out = self.shell.ask("gcloud", "compute", "tpus", "queued-resources", "list", *listing)
        states = dict(line.split("\t") for line in out.splitlines() if "\t" in line)
        return code, states.get(self.name, "")

    def _progress(self) -> str:
        """What the workers say, as one: unreachable, absent, running, or ``exited N``."""
        command = [*self._command("ssh"), "--node=all", "--worker=all", f"--command={_STATUS}"]
        code, out = self.shell.ask(*command)
        said = re.findall(r"^posttrain_jax: (.+)$", out, re.MULTILINE)
        if code or not said:
            return "unreachable"
        failed = [word for word in said if word not in ("absent", "running", "exited 0", f"exited {cluster.SAVED}")]
        order = [*sorted(failed, key=lambda word: word != "exited 2"), "absent", "running", f"exited {cluster.SAVED}"]
        return next((word for word in order if word in said), "exited 0")

    def _everywhere(self, command: str) -> int:
        return self._gcloud("ssh", "--node=all", "--worker=all", f"--command={command}")

    def _gcloud(self, verb: str, *arguments: str) -> int:
        return self.shell.run(*self._command(verb, *arguments))

    def _command(self, verb: str, *arguments: str) -> list[str]:
        name = [] if verb == "scp" else [self.name]
        where = [f"--zone={self.values.zone}", *self._project()]
        return ["gcloud", "compute", "tpus", "queued-resources", verb, *name, *arguments, *where]

    def _project(self) -> list[str]:
        return [f"--project={self.values.project}"] if self.values.project else []

    def _say(self, what: str) -> None:
        if not self.values.dry_run:
            print(f"{self.name}: {what}", flush=True)


_STATUS = f"if [ -e {WORKER} ]; then bash {WORKER} status; else echo posttrain_jax: absent; fi"


def _flags() -> flags.FlagValues:
    values = cluster.flags_of_slices()
    flags.DEFINE_boolean("spot", False, "cheaper machines that may be taken away", flag_values=values)
    flags.DEFINE_boolean("reserved", False, "machines of a reservation", flag_values=values)
    flags.DEFINE_string(
        "create_flags", "", "more flags for gcloud's create, such as --network=NAME", flag_values=values
    )
    flags.DEFINE_string("nfs", None, "HOST:/SHARE, mounted at /mnt/runs of every worker", flag_values=values)
    flags.DEFINE_float("poll", 30.0, "wait, watch: seconds between looks", 0.0, flag_values=values)
    flags.DEFINE_integer(
        "retries", 3, "watch: new starts after a crash, and new tries when gcloud fails", 0, flag_values=values
    )
    return values


if __name__ == "__main__":
    command_line.run(main)
