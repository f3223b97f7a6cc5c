"""Programs asked for in words and judged by hidden asserts, with a Python to try things in, and their canaries."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from posttrain_jax.chat.format import Message
from posttrain_jax.data.files import Lines, decoded
from posttrain_jax.environments.environment import EnvironmentFailure, Observation, Step
from posttrain_jax.environments.repository import chosen
from posttrain_jax.environments.tools import Toolbox
from posttrain_jax.environments.tools.interpreter import Interpreter
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.alarm import Canary
from posttrain_jax.rewards.graders import asserts
from posttrain_jax.rewards.graders.code import code
from posttrain_jax.rewards.sandbox.sandbox import Sandbox


@dataclasses.dataclass(frozen=True)
class Exercise:
    """A program to be written.

    Attributes:
      prompt: what is asked, in words.
      tests: asserts that `graders.code` can judge.
      setup: runs before each test.
    """

    prompt: str
    tests: tuple[str, ...]
    setup: str = ""


class Code:
    """One exercise an episode: calls of ``python`` as often as the agent likes, then an answer, which is judged."""

    def __init__(self, exercises: Sequence[Exercise], sandbox: Sandbox, *, canary: bool = False):
        """A ``canary`` asks the same, but one of its tests is the contradiction of another."""
        self._exercises, self._sandbox, self._canary = exercises, sandbox, canary
        self._exercise: Exercise | None = None
        self._toolbox = Toolbox([])

    async def reset(self, seed: int) -> Observation:
        """The exercise of a seed, in words."""
        exercise: Exercise = chosen(self._exercises, seed)
        self._exercise = exercise
        self._toolbox = Toolbox([*Interpreter(self._sandbox).tools])
        return Observation([{"role": "user", "content": question(exercise)}], self._toolbox.declarations)

    async def step(self, message: Message) -> Step:
        """The tools' results, or the verdict on an answer without calls."""
        if self._exercise is None:
            raise ValueError("step before reset")
        if results := await self._toolbox.results(message):
            return Step(results)
        asked, text = self._exercise, str(message.get("content") or "")
        tests = Canary.of(asked.prompt, asked.tests[0]).tests if self._canary else asked.tests
        verdict = await asyncio.to_thread(code, self._sandbox, text, tests, setup=asked.setup)
        if verdict.infrastructure:
            raise EnvironmentFailure(verdict.reason)
        return Step(reward=verdict.reward, done=True, info={"reason": verdict.reason, "canary": self._canary})

    async def close(self) -> None:
        """Holds nothing; the sandbox is its owner's."""


def question(exercise: Exercise) -> str:
    """What is asked, with the call of the first test, so that the function's name is known."""
    [first, *_] = asserts.parse(exercise.tests[0])[0].calls
    return f"{exercise.prompt}\nIt will be called like this: {first}\nAnswer with one Python program."


def read(path: str) -> list[Exercise]:
    """The exercises of a JSONL file: ``{"prompt": …, "tests": ["assert …", …], "setup": …}``, or MBPP's own names.

    Raises:
      UserError: a missing file, a line that is none of these, or tests that cannot be judged.
    """
    lines = Lines(path)
    return [_exercise(lines, i) for i in range(len(lines))]


def _exercise(lines: Lines, index: int) -> Exercise:
    try:
        row = decoded(lines[index])
        prompt, tests = row.get("prompt", row.get("text")), row.get("tests", row.get("test_list"))
        found = Exercise(prompt, tuple(map(str.strip, tests)), row.get("setup", row.get("test_setup_code", "")))
        if not isinstance(prompt, str) or not isinstance(found.setup, str):
            raise ValueError("prompt and setup are text")
        asserts.parse(found.tests)
        Canary.of(prompt, found.tests[0])
    except (ValueError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{lines.where(index)}: no exercise: {error}") from error
    return found
