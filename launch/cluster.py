"""What the launchers of clusters share: the accelerator types, the command that trains, and a shell that can rehearse.

A command is a list of arguments from end to end. It becomes one string only where another machine's shell will read
it, and is quoted there.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from absl import flags

from posttrain_jax.errors import UserError
from posttrain_jax.run.nearest import nearest

ROOT = Path(__file__).resolve().parent.parent
SAVED = 75  # exit code of launch/train.py: stopped by a signal, everything saved, start it again
CUBES = tuple(range(128, 12288 + 1, 128))  # TensorCores of whole 4x4x4 cubes, two on a chip


@dataclasses.dataclass(frozen=True)
class Generation:
    """TPUs of one kind; ``sizes`` are the numbers that may follow the prefix of an accelerator type.

    ``runtime`` is the software of a TPU VM, None where there are no TPU VMs. ``cores`` TensorCores are counted on a
    chip, so that ``v5p-256`` has 128 chips and ``v6e-256`` has 256.
    """

    name: str
    runtime: str | None
    cores: int
    sizes: tuple[int, ...]


GENERATIONS = {
    "v5litepod": Generation("TPU v5e", "v2-alpha-tpuv5-lite", 1, (1, 4, 8, 16, 32, 64, 128, 256)),
    "v5p": Generation("TPU v5p", "v2-alpha-tpuv5", 2, (8, 16, 32, 64, *CUBES)),
    "v6e": Generation("TPU v6e", "v2-alpha-tpuv6e", 1, (1, 4, 8, 16, 32, 64, 128, 256)),
    "tpu7x": Generation("TPU7x", None, 2, (8, 16, 32, 64, *CUBES)),
}


def generation(given: str | None) -> Generation:
    """The generation of an accelerator type such as ``v5p-256``.

    Raises:
      UserError: there is no such type; the sentence names the nearest.
    """
    if not given:
        raise UserError("--type is missing: an accelerator type, such as --type=v5p-256")
    prefix, _, size = given.partition("-")
    if prefix in GENERATIONS and size.isdigit():
        if int(size) in GENERATIONS[prefix].sizes:
            return GENERATIONS[prefix]
        close = min(GENERATIONS[prefix].sizes, key=lambda good: abs(good - int(size)))
        raise UserError(f"--type={given}: {GENERATIONS[prefix].name} has no such size; the nearest is {prefix}-{close}")
    names = [f"{prefix}-{size}" for prefix, kind in GENERATIONS.items() for size in kind.sizes]
    close = nearest(given.replace("v5e", "v5litepod"), names)
    raise UserError(f"--type={given}: no such accelerator type; the nearest is {close}")


def name(given: str | None, flag: str = "name") -> str:
    """A name that Google Cloud takes: up to 40 lower-case letters, digits and dashes, from a letter on.

    Raises:
      UserError: it is missing, or would not be taken.
    """
    if not given:
        raise UserError(f"--{flag} is missing: any name you choose, such as --{flag}=m2")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", given):
        good = re.sub(r"[^a-z0-9]+", "-", given.lower()).lstrip("-0123456789")[:40].rstrip("-") or "m2"
        raise UserError(
            f"--{flag}={given}: at most 40 lower-case letters, digits and dashes, from a letter on; "
            f"the nearest is {good}"
        )
    return given


def action(arguments: Sequence[str], actions: Iterable[str]) -> tuple[str, list[str]]:
    """The action, which comes first, and the rest; ``help`` when help is asked for.

    Raises:
      UserError: there is no such action; the sentence names the nearest.
    """
    first, *rest = arguments or [""]
    if first in ("", "help") or (first.startswith("-") and "help" in first) or first == "-h":
        return "help", rest
    if first not in actions:
        raise UserError(f"{first!r} is no action; the nearest is {nearest(first, actions)} of {', '.join(actions)}")
    return first, rest


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's own arguments, and those after ``--``, which are launch/train.py's."""
    own = list(arguments)
    if "--" not in own:
        return own, []
    at = own.index("--")
    return own[:at], own[at + 1 :]


def training(arguments: Sequence[str], *, remote: bool) -> list[str]:
    """The arguments of launch/train.py on every process of a cluster.

    Args:
      arguments: what the user wrote after ``--``.
      remote: whether the machines vanish with their disks, so that the run must be kept elsewhere.

    Raises:
      UserError: no recipe is named, or the run would be lost with the machines.
    """
    given = dict(_pairs(arguments))
    if not given.get("config"):
        raise UserError("nothing to run: end with -- --config=configs/minimax_m2.py:full --workdir=DIR")
    workdir = given.get("workdir", "")
    if not workdir:
        raise UserError("--workdir is missing after --: every process needs the same directory, where the run goes on")
    if remote and not workdir.startswith("/"):
        why = "a bucket is no folder" if "://" in workdir else "is lost with the machines"
        raise UserError(
            f"--workdir={workdir}: {why}; mount a file system on all machines: "
            f"the nearest is /mnt/runs/{Path(workdir).name}"
        )
    broken = [argument for argument in arguments if "\n" in argument or "\0" in argument]
    if broken:
        raise UserError(f"{broken[0]!r}: has a line break, which does not survive the way to the machines")
    return [*([] if "distributed" in given else ["--distributed"]), *arguments]


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of every flag, written ``--a=b`` or ``--a b``."""
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument.startswith("-"):
            key, equals, value = argument.lstrip("-").partition("=")
            yield key, value if equals else "" if following.startswith("-") else following


def flags_of_all() -> flags.FlagValues:
    """The flags that every launcher has."""
    values = flags.FlagValues()
    flags.DEFINE_string("name", None, "of the run and what holds it; you choose it", flag_values=values)
    flags.DEFINE_integer("lines", 50, "logs: how many lines", 1, flag_values=values)
    flags.DEFINE_boolean("follow", False, "logs: go on until Ctrl-C", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "print every command and run none", flag_values=values)
    return values


def flags_of_slices() -> flags.FlagValues:
    """Those, and the flags of Google Cloud's TPUs."""
    values = flags_of_all()
    flags.DEFINE_string("zone", None, "zone of Google Cloud", flag_values=values)
    flags.DEFINE_string("project", None, "project of Google Cloud (gcloud's own)", flag_values=values)
    flags.DEFINE_string(
        "type", None, f"of one slice: {', '.join(f'{kind}-N' for kind in GENERATIONS)}", flag_values=values
    )
    flags.DEFINE_integer("slices", 1, "slices, joined by the network of the data centre", 1, flag_values=values)
    flags.DEFINE_string("worker", "0", "logs: of which worker, or all", flag_values=values)
    flags.DEFINE_string("slice", "0", "logs: of which slice, or all", flag_values=values)
    return values


@dataclasses.dataclass
class Shell:
    """Runs commands; a rehearsal prints them as they would be typed, runs none, and takes ``answers`` for theirs."""

    rehearsal: bool
    answers: Iterator[str] = dataclasses.field(default_factory=lambda: iter(()))

    def run(self, *command: str) -> int:
        """Runs a command and returns its exit code."""
        return self._execute(command, None)[0]

    def ask(self, *command: str) -> tuple[int, str]:
        """Exit code and what the command printed."""
        return self._execute(command, subprocess.PIPE)

    def pause(self, seconds: float) -> None:
        if not self.rehearsal:
            time.sleep(seconds)

    def _execute(self, command: Sequence[str], out: int | None) -> tuple[int, str]:
        if self.rehearsal:
            print(shlex.join(command))
            return 0, next(self.answers, "") if out == subprocess.PIPE else ""
        sys.stdout.flush()
        try:
            ended = subprocess.run(command, stdout=out, text=True)
        except FileNotFoundError:
            raise UserError(f"{command[0]}: not found; install it, or print the commands with --dry_run") from None
        return ended.returncode, ended.stdout or ""
