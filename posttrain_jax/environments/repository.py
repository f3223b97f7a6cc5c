"""A repository with an issue: the agent edits it, and hidden tests judge what it leaves.

The tests run in a fresh sandbox, beside a copy of the files and out of the agent's reach; see `graders.suite`.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import difflib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from posttrain_jax.chat.format import Message
from posttrain_jax.data.files import Lines, decoded
from posttrain_jax.environments.environment import EnvironmentFailure, Observation, Step
from posttrain_jax.environments.tools import Toolbox, tool
from posttrain_jax.environments.tools.sandboxed import Sandboxed
from posttrain_jax.environments.tools.workspace import Workspace
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.graders.suite import suite
from posttrain_jax.rewards.sandbox.program import Program
from posttrain_jax.rewards.sandbox.sandbox import Sandbox

SYSTEM = "Solve the issue in the repository with your tools, then call submit."


@dataclasses.dataclass(frozen=True)
class Issue:
    """What is to be done to a repository.

    Attributes:
      issue: in words.
      files: the repository, text by path.
      tests: hidden files of pytest, text by path.
      expected: how many tests they hold.
    """

    issue: str
    files: Mapping[str, str]
    tests: Mapping[str, str]
    expected: int


class Repository:
    """One issue an episode; the reward is 1 if all hidden tests pass when the agent submits or calls no tool."""

    def __init__(self, issues: Sequence[Issue], sandbox: Sandbox, *, seconds: float = 30.0):
        """The sandbox's Python has pytest; ``seconds`` bounds one command of the agent."""
        self._issues, self._sandbox, self._seconds = issues, sandbox, seconds
        self._issue: Issue | None = None
        self._workspace, self._toolbox = Workspace(), Toolbox([])
        self._submitted = False

    async def reset(self, seed: int) -> Observation:
        """The issue of a seed, and a fresh copy of its repository."""
        issue: Issue = chosen(self._issues, seed)
        self._issue, self._submitted = issue, False
        self._workspace = Workspace(issue.files, Sandboxed(self._sandbox), seconds=self._seconds)
        self._toolbox = Toolbox([*self._workspace.tools, tool(self.run_tests), tool(self.submit)])
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": issue.issue}]
        return Observation(messages, self._toolbox.declarations)

    async def step(self, message: Message) -> Step:
        """The tools' results; the verdict of the hidden tests when the agent has submitted."""
        if self._issue is None:
            raise ValueError("step before reset")
        results = await self._toolbox.results(message)
        if results and not self._submitted:
            return Step(results)
        files, issue = dict(self._workspace.files), self._issue
        verdict = await asyncio.to_thread(suite, self._sandbox, files, issue.tests, issue.expected)
        if verdict.infrastructure:
            raise EnvironmentFailure(verdict.reason)
        info = {"reason": verdict.reason, "patch": patch(issue.files, files)}
        return Step(results, reward=verdict.reward, done=True, info=info)

    async def close(self) -> None:
        """Holds nothing; the sandbox is its owner's."""

    async def run_tests(self, path: str = ".") -> str:
        """Runs the repository's own tests.

        Args:
          path: of a file or folder of tests
        """
        return await self._workspace.execute("python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", path)

    def submit(self) -> str:
        """Hands in the repository as it is; the last thing to do."""
        self._submitted = True
        return "submitted"


def patch(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """What was changed, as a unified diff."""
    parts = []
    for path in sorted({*before, *after}):
        old, new = (each.get(path, "").splitlines(keepends=True) for each in (before, after))
        lines = difflib.unified_diff(old, new, f"a/{path}", f"b/{path}")
        parts += [line if line.endswith("\n") else line + "\n" for line in lines]
    return "".join(parts)


def chosen(rows: Sequence[Any], seed: int) -> Any:
    """The row of a seed."""
    return rows[random.Random(f"row/{seed}").randrange(len(rows))]


def read(path: str) -> list[Issue]:
    """The issues of a JSONL file: ``{"issue": …, "files": {path: text}, "tests": {path: text}, "expected": N}``.

    Raises:
      UserError: a missing file, or a line that is none of these.
    """
    lines = Lines(path)
    return [_issue(lines, i) for i in range(len(lines))]


def _issue(lines: Lines, index: int) -> Issue:
    try:
        row = decoded(lines[index])
        found = Issue(row["issue"], row["files"], row["tests"], row["expected"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{lines.where(index)}: no issue, for {error}") from error
    texts = [found.issue, *found.files, *found.files.values(), *found.tests, *found.tests.values()]
    if not all(isinstance(text, str) for text in texts) or not found.tests or type(found.expected) is not int:
        raise UserError(f"{lines.where(index)}: issue, files and tests are text, and expected is a number")
    try:
        Program(source="", files=found.files, given={f"tests/{path}": text for path, text in found.tests.items()})
    except UserError as error:
        raise UserError(f"{lines.where(index)}: {error}") from error
    return found


def broken_solutions(rows: Iterable[Mapping[str, Any]], sandbox: Sandbox, seed: int = 0) -> Iterator[Issue]:
    """Issues made of MBPP's rows: the solution has one operator or number changed, so that its tests fail.

    Each was tried: the tests pass before the change and fail after it. Rows that allow none are left out.
    """
    for number, row in enumerate(rows):
        code = row["code"].replace("\r\n", "\n")
        asserts = [test.replace("\r\n", "\n") for test in row["test_list"]]
        tests = {"test_hidden.py": _tests(row.get("test_setup_code", ""), asserts)}
        if not suite(sandbox, {"solution.py": code}, tests, len(asserts)).correct:
            continue
        mutants = list(changed(code))
        random.Random(f"{seed}/{number}").shuffle(mutants)
        for mutant in mutants[:4]:
            verdict = suite(sandbox, {"solution.py": mutant}, tests, len(asserts))
            if "tests failed" in verdict.reason:
                text = f"solution.py has a bug in one line. What it should do: {row['text']}"
                yield Issue(text, {"solution.py": mutant}, tests, len(asserts))
                break


def _tests(setup: str, asserts: Sequence[str]) -> str:
    bodies = [
        f"def test_{i}():\n" + "\n".join(f"    {line}" for line in test.splitlines()) for i, test in enumerate(asserts)
    ]
    return "\n\n".join(["from solution import *", setup.replace("\r\n", "\n"), *bodies]) + "\n"


OTHERS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def changed(code: str) -> Iterator[str]:
    """The program with one operator or small number changed, in every way there is."""
    for place in range(sum(1 for _ in ast.walk(ast.parse(code)))):
        tree = ast.parse(code)
        node = list(ast.walk(tree))[place]
        if isinstance(node, ast.Compare) and type(node.ops[0]) in OTHERS:
            node.ops[0] = OTHERS[type(node.ops[0])]()
        elif isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in OTHERS:
            node.op = OTHERS[type(node.op)]()
        elif isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 100:
            node.value += 1
        else:
            continue
        yield ast.unparse(tree) + "\n"
