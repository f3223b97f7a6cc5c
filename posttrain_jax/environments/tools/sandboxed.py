"""A runner that is a sandbox."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import math
import sys
from collections.abc import Mapping, Sequence

from posttrain_jax.environments.environment import EnvironmentFailure
from posttrain_jax.environments.tools.runner import Outcome
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.sandbox.program import MIB, Limits, Program
from posttrain_jax.rewards.sandbox.sandbox import Sandbox

REFUSED, KILLED = 126, 137  # a shell's exit status of what it cannot run, and of what was killed
LIMIT = {"cpu": "cpu_seconds", "memory": "memory", "output": "output"}  # of Limits, by how a program ended


class Sandboxed:
    """Runs an agent's commands in a sandbox; a `Runner`."""

    def __init__(self, sandbox: Sandbox, limits: Limits = Limits(output=MIB // 8)):  # noqa: B008 (frozen)
        """The limits, but for seconds, are those of each command."""
        self._sandbox, self._limits = sandbox, limits

    async def run(self, command: Sequence[str], files: Mapping[str, str], seconds: float) -> Outcome:
        """The outcome: output, then errors, then the limit that was met if it is not that of time.

        Raises:
          EnvironmentFailure: the sandbox failed; the command is not to blame.
        """
        limits = dataclasses.replace(self._limits, seconds=seconds, cpu_seconds=math.ceil(seconds))
        try:
            program = Program(command=command, files=files, limits=limits, keep=True)
        except UserError as error:  # the agent's mistake
            return Outcome(f"{error}\n", REFUSED, files)
        ended = await self._sandbox.start(program)
        if ended.ended == "infrastructure":
            raise EnvironmentFailure(f"the sandbox failed: {ended.reason}")
        output = (ended.stdout + ended.stderr).decode(errors="replace")
        if ended.ended == "seconds":
            return Outcome(output, None, ended.files)
        if ended.ended != "exit":
            output += f"\n[ended: over the limit of {ended.ended}, {getattr(limits, LIMIT[ended.ended])}]\n"
        return Outcome(output, KILLED if ended.status is None else ended.status, ended.files)


@functools.cache
def shared(packages: bool = False) -> Sandbox:
    """The sandbox of all environments of this process; with ``packages`` its Python is ours with pytest, else bare.

    Raises:
      SandboxUnavailable: this machine cannot confine programs.
      UserError: there is no pytest.
    """
    opened = Sandbox.open(python=sys.executable if packages else None)
    atexit.register(opened.close)
    trial = Program(source="import pytest", limits=Limits(seconds=30.0, cpu_seconds=30))
    if packages and opened.run(trial).status != 0:
        raise UserError(f"repositories are judged by pytest, which {sys.executable} does not have: pip install pytest")
    return opened
