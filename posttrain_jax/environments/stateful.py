"""Worlds with a state and one right end: the agent acts until it answers without a call, and the end is compared."""

from __future__ import annotations

import abc
import dataclasses
import random
from typing import Any, ClassVar

from posttrain_jax.chat.format import Message
from posttrain_jax.environments.environment import Observation, Step
from posttrain_jax.environments.tools import Tool, Toolbox


@dataclasses.dataclass(frozen=True)
class Goal:
    """What to reach.

    Attributes:
      text: the wishes in words, a sentence each.
      state: how the world has to be in the end.
      answer: what the last words have to be, up to a full stop; None if any will do.
    """

    text: str
    state: Any
    answer: str | None = None


class Stateful(abc.ABC):
    """A world of levels: reward 1 if state and answer are the goal's when the agent ends, else 0.

    Attributes:
      name: the world's, of which all its randomness derives with level and seed.
      highest: level.
    """

    name: ClassVar[str]
    highest: ClassVar[int]

    def __init__(self, level: int = 0):
        if not 0 <= level <= self.highest:
            raise ValueError(f"level {level}; expected 0 to {self.highest}")
        self._level = level
        self.state: Any = None
        self._goal = Goal("", None)
        self._toolbox = Toolbox(self.tools)

    @classmethod
    @abc.abstractmethod
    def opened(cls, level: int, rng: random.Random) -> tuple[Any, Goal]:
        """A state to begin with and a goal that can be reached from it; the goal's state shares nothing with it."""

    @property
    @abc.abstractmethod
    def tools(self) -> list[Tool]:
        """What the agent can do."""

    @classmethod
    def begun(cls, level: int, seed: int) -> tuple[Any, Goal]:
        """State and goal of an episode."""
        return cls.opened(level, random.Random(f"{cls.name}/{level}/{seed}"))

    @classmethod
    def question(cls, level: int, seed: int) -> str:
        """What an episode asks, in words."""
        return cls.begun(level, seed)[1].text

    async def reset(self, seed: int) -> Observation:
        """A new state and a goal."""
        self.state, self._goal = self.begun(self._level, seed)
        return Observation([{"role": "user", "content": self._goal.text}], self._toolbox.declarations)

    async def step(self, message: Message) -> Step:
        """The tools' results; done when the agent calls no tool."""
        results = await self._toolbox.results(message)
        if results:
            return Step(results)
        said = str(message.get("content") or "").strip().removesuffix(".")
        right = self.state == self._goal.state and self._goal.answer in (None, said)
        info = {"state": self.state == self._goal.state, "said": said, "answer": self._goal.answer}
        return Step(reward=float(right), done=True, info=info)

    async def close(self) -> None:  # noqa: B027
        """Holds nothing."""
