"""What any environment is: a task to begin with, and what comes back of each answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from posttrain_jax.chat.format import Message


class EnvironmentFailure(Exception):
    """The environment broke down, a sandbox perhaps: nothing is known of the agent, and its episode earns nothing."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """How an episode begins.

    Attributes:
      messages: the conversation that the agent finds: a system message perhaps, and the task.
      tools: JSON-schema functions that it may call.
    """

    messages: Sequence[Message]
    tools: Sequence[Message] = ()


@dataclasses.dataclass(frozen=True)
class Step:
    """What came back of one answer.

    Attributes:
      messages: tool results or a user's message; the agent reads them next. Not read when the episode is done.
      reward: of this answer alone; an episode's reward is the sum.
      done: the episode is over.
      info: whatever is worth a line in a report.
    """

    messages: Sequence[Message] = ()
    reward: float = 0.0
    done: bool = False
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Environment(Protocol):
    """One episode at a time; many environments are played at once."""

    async def reset(self, seed: int) -> Observation:
        """Begins an episode. All that is random in it derives from the seed.

        Raises:
          EnvironmentFailure: the environment is to blame; ``step`` may raise it too.
        """
        ...

    async def step(self, message: Message) -> Step:
        """Takes the agent's answer, as ``Chat.parse`` reads it, without errors."""
        ...

    async def close(self) -> None:
        """Gives back what the episode holds; it is called once, however the episode ended."""
        ...
