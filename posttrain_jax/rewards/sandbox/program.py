"""A program to be run in a sandbox, what it may use up, and what became of it."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Mapping, Sequence
from typing import Literal

from posttrain_jax.errors import UserError

Ending = Literal["exit", "seconds", "cpu", "memory", "output", "infrastructure"]

MIB = 2**20
MOST_FILES = 1000


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one program may use up.

    Attributes:
      seconds: by the clock, until everything it started is ended.
      cpu_seconds: CPU time of each process.
      memory: bytes of all its processes and files together.
      processes: at one time, threads counted.
      file: bytes of the largest file, of the working folder and of the files that come back.
      output: bytes of standard output and errors together.
    """

    seconds: float = 6.0
    cpu_seconds: int = 4
    memory: int = 512 * MIB
    processes: int = 64
    file: int = 64 * MIB
    output: int = 1 * MIB

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value <= 0:
                raise UserError(f"limits.{field.name} is {value}; expected more than 0")


@dataclasses.dataclass(frozen=True)
class Program:
    """A program nobody trusts.

    Attributes:
      command: arguments, the first one looked up in the sandbox's PATH; empty: its Python, reading ``source``.
      source: Python text, readable there as ``/program/main.py``.
      stdin: bytes on its standard input.
      files: text by path within the working folder, which holds nothing else; Python imports from there.
      given: text by path below ``/program``, which nothing within can change; not ``main.py``.
      limits: what it may use up.
      keep: whether the text files of the working folder come back.

    Raises:
      UserError: it can be run nowhere: no command, a path that leads out, files too large.
    """

    command: Sequence[str] = ()
    source: str | None = None
    stdin: bytes = b""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    given: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limits: Limits = Limits()
    keep: bool = False

    def __post_init__(self):
        if isinstance(self.command, str):
            raise UserError(f"command is the string {self.command!r}; expected a list of arguments")
        if not self.command and self.source is None:
            raise UserError("a program has neither a command nor a source; give one")
        for argument in self.command:
            if "\0" in argument:
                raise UserError(f"the argument {argument!r} holds a zero byte")
        for path in self.given:
            if not within(path) or path in ("main.py", "collect.py"):
                raise UserError(f"the path {path!r} is not free below /program")
        for path in self.files:
            if not within(path):
                raise UserError(f"the path {path!r} is not one within the working folder, such as 'folder/file.py'")
            if folder := next((folder for folder in _above(path) if folder in self.files), None):
                raise UserError(f"{folder!r} is a file, and a folder in {path!r}")
        if len(self.files) > MOST_FILES:
            raise UserError(f"a program has {len(self.files)} files; at most {MOST_FILES} fit")
        if (size := sum(len(text.encode(errors="replace")) for text in self.files.values())) > self.limits.file // 2:
            raise UserError(
                f"the files hold {size} bytes; at most half of limits.file, {self.limits.file}, may be used"
            )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a program. All of it was written by code nobody trusts.

    Attributes:
      stdout: what it wrote, as far as the limit goes.
      stderr: likewise.
      status: its exit status, 128 and the signal's number where a signal ended it; None if it was ended from outside.
      ended: by itself (``exit``), or the limit that it met, or ``infrastructure``: it never ran, and nothing is
        known about it.
      files: the text files of the working folder, where they were asked for; those given if none could be read back.
      reason: what went wrong in the sandbox, or with the files that should have come back; mostly empty.
    """

    stdout: bytes
    stderr: bytes
    status: int | None
    ended: Ending
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reason: str = ""


def within(path: str) -> bool:
    """Whether a path is a plain one below the folder that it starts from, and a file can have it."""
    try:
        name = path.encode()
    except UnicodeError:
        return False
    if not name or path != posixpath.normpath(path) or path.startswith(("/", "../")) or path in (".", ".."):
        return False
    return b"\0" not in name and len(name) <= 1024 and all(len(part) <= 255 for part in name.split(b"/"))


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
