"""A Python that remembers: what one call defines, the next one has.

Each call runs in a fresh sandbox, in which the earlier ones are run again first, in silence. So an interpreter holds no
process between two calls, which would keep a sandbox busy while a model thinks, and an episode repeats: the random
numbers of a cell are the same every time. A call that meets a limit is forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from posttrain_jax.environments.environment import EnvironmentFailure
from posttrain_jax.environments.tools.tool import Tool, tool
from posttrain_jax.rewards.sandbox.program import MIB, Limits, Program
from posttrain_jax.rewards.sandbox.sandbox import Sandbox

DRIVER = """
import ast, json, os, random, sys, traceback

def run(cell):
    try:
        tree = ast.parse(cell, "<cell>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<cell>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
            if value is not None:
                print(repr(value))
    except SystemExit:
        pass
    except BaseException:
        error = sys.exc_info()
        skipped = error[2].tb_next
        print("".join(traceback.format_exception(error[0], error[1], skipped)), end="", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()

*earlier, last = json.loads(sys.stdin.read())
names = {"__name__": "__main__", "__builtins__": __builtins__}
random.seed(0)
quiet, told = os.open(os.devnull, os.O_WRONLY), (os.dup(1), os.dup(2))
for place in (1, 2):
    os.dup2(quiet, place)
for cell in earlier:
    run(cell)
for place in (1, 2):
    os.dup2(told[place - 1], place)
run(last)
os._exit(COMPLETED)
"""
COMPLETED = 87  # exit status of a driver that came to its end


class Interpreter:
    """One agent's Python session."""

    def __init__(self, sandbox: Sandbox, limits: Limits = Limits(seconds=10.0, cpu_seconds=8, output=MIB // 8)):  # noqa: B008 (frozen)
        """The limits are those of a call, together with all that it has to run again."""
        self._sandbox, self._limits = sandbox, limits
        self._cells: list[str] = []

    @property
    def tools(self) -> Sequence[Tool]:
        """``python``."""
        return [tool(self.python)]

    async def python(self, code: str) -> str:
        """Runs Python code; variables, functions and files are kept from call to call.

        Args:
          code: what to run; what it prints comes back, and the value of an expression on its last line
        """
        stdin = json.dumps([*self._cells, code]).encode()
        outcome = await self._sandbox.start(
            Program(source=f"COMPLETED = {COMPLETED}\n{DRIVER}", stdin=stdin, limits=self._limits)
        )
        if outcome.ended == "infrastructure":
            raise EnvironmentFailure(f"the sandbox failed: {outcome.reason}")
        output = (outcome.stdout + outcome.stderr).decode(errors="replace").rstrip("\n")
        if outcome.ended != "exit":
            return f"{output}\n[over the limit of {outcome.ended}; this call is forgotten]".lstrip("\n")
        if outcome.status != COMPLETED:
            return f"{output}\n[the interpreter ended; this call is forgotten]".lstrip("\n")
        self._cells.append(code)
        return output or "[no output]"
