"""A folder of text files that an agent edits and runs programs in.

The files live here, in memory; a runner is handed them for each command, and gives back what they have become. So a
workspace needs no folder on this machine, and is copied, compared and thrown away like any value.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from posttrain_jax.environments.tools.runner import Runner
from posttrain_jax.environments.tools.tool import Tool, ToolError, tool


class Workspace:
    """Files and the tools over them.

    Attributes:
      files: text by path.
    """

    def __init__(self, files: Mapping[str, str] | None = None, runner: Runner | None = None, *, seconds: float = 30.0):
        """The files to begin with; without a runner there is an editor only. ``seconds`` bounds one command."""
        self.files = dict(files or {})
        self._runner, self._seconds = runner, seconds

    @property
    def tools(self) -> list[Tool]:
        """The editor's tools and, with a runner, ``shell`` and ``python``."""
        editor = [tool(self.view), tool(self.create), tool(self.replace), tool(self.insert)]
        return editor + ([tool(self.shell), tool(self.python)] if self._runner else [])

    def view(self, path: str = ".", first: int = 1, last: int | None = None) -> str:
        """Shows a file with line numbers, or lists a folder.

        Args:
          path: of the file or folder
          first: line to begin with
          last: line to end with
        """
        name = inside(path)
        if name not in self.files:
            below = [file for file in sorted(self.files) if name == "." or file.startswith(f"{name}/")]
            if not below and name != ".":
                raise ToolError(f"no file or folder {path!r}")
            return "\n".join(below) or "empty"
        lines = self.files[name].splitlines()
        last = len(lines) if last is None else last
        if lines and not 1 <= first <= last <= len(lines):
            raise ToolError(f"lines {first} to {last} are not within 1 to {len(lines)}")
        return "\n".join(f"{number}\t{line}" for number, line in enumerate(lines[first - 1 : last], first)) or "empty"

    def create(self, path: str, text: str) -> None:
        """Writes a file, in place of any that is there.

        Args:
          path: of the file
          text: all of it
        """
        name = inside(path)
        folder = next((file for file in self.files if file.startswith(f"{name}/")), None)
        file = next((file for file in self.files if name.startswith(f"{file}/")), None)
        if name == "." or folder or file:
            raise ToolError(f"{path!r} cannot be a file: " + (f"{file!r} is one" if file else "it is a folder"))
        self.files[name] = text

    def replace(self, path: str, old: str, new: str) -> None:
        """Replaces text that occurs in a file exactly once.

        Args:
          path: of the file
          old: the text, with its spaces and line ends
          new: what is to stand there
        """
        text = self._text(path)
        if (count := text.count(old) if old else 0) != 1:
            raise ToolError(f"old occurs {count} times in {path!r}; it has to occur once")
        self.files[inside(path)] = text.replace(old, new)

    def insert(self, path: str, line: int, text: str) -> None:
        """Inserts lines into a file.

        Args:
          path: of the file
          line: number of the line behind which they go, 0 for the beginning
          text: the lines
        """
        lines = self._text(path).splitlines(keepends=True)
        if not 0 <= line <= len(lines):
            raise ToolError(f"line is {line}; expected 0 to {len(lines)}")
        ended = [each if each.endswith("\n") else each + "\n" for each in lines[:line]]
        self.files[inside(path)] = "".join([*ended, text if text.endswith("\n") else text + "\n", *lines[line:]])

    async def shell(self, command: str) -> str:
        """Runs a shell command in the working folder.

        Args:
          command: for sh
        """
        return await self.execute("sh", "-c", command)

    async def python(self, code: str) -> str:
        """Runs a Python program in the working folder; nothing but files is kept from one to the next.

        Args:
          code: the program; what it prints comes back
        """
        return await self.execute("python3", "-c", code)

    async def execute(self, *command: str) -> str:
        """Runs a command on the files, and shows what it wrote and how it ended."""
        if self._runner is None:
            raise ToolError("nothing here runs programs")
        outcome = await self._runner.run(command, dict(self.files), self._seconds)
        self.files = dict(outcome.files)
        if outcome.status is None:
            return f"{outcome.output}\n[ended after {self._seconds:g} s]".lstrip("\n")
        ending = "" if outcome.status == 0 else f"[exit status {outcome.status}]"
        return "\n".join(filter(None, (outcome.output.rstrip("\n"), ending))) or "[no output]"

    def _text(self, path: str) -> str:
        if inside(path) not in self.files:
            raise ToolError(f"no file {path!r}")
        return self.files[inside(path)]


def inside(path: str) -> str:
    """A path in its shortest form.

    Raises:
      ToolError: it leads out of the working folder.
    """
    name = posixpath.normpath(path)
    if name == ".." or name.startswith(("/", "../")) or "\0" in path:
        raise ToolError(f"{path!r} is outside of the working folder")
    return name
