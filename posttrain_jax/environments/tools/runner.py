"""What runs a model's programs: given from outside, because only a sandbox may."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
      output: what it wrote, standard output and errors together.
      status: its exit status; None if it was ended because it took too long.
      files: the files afterwards, by their paths within the working folder.
    """

    output: str
    status: int | None
    files: Mapping[str, str]


class Runner(Protocol):
    """Runs a command in a working folder that holds the given files and nothing else."""

    async def run(self, command: Sequence[str], files: Mapping[str, str], seconds: float) -> Outcome:
        """The outcome; the command is ended after ``seconds``."""
        ...
