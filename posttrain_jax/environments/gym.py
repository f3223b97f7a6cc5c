"""A Gymnasium environment of text as one of ours; needs ``pip install "posttrain_jax[gymnasium]"`` only to make one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, SupportsFloat

from posttrain_jax.chat.format import Message
from posttrain_jax.environments.environment import Observation, Step


class Gym(Protocol):
    """What is needed of ``gymnasium.Env``."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]: ...

    def close(self) -> Any: ...


class GymEnvironment:
    """The text of an answer, without its reasoning, is the action; an observation is the user's next message.

    The environment's own code runs in a thread, so that others are played meanwhile. A truncated episode is done, and
    ``info`` says that it was.
    """

    def __init__(
        self,
        gym: Gym,
        *,
        instructions: str = "",
        action: Callable[[str], Any] = str,
        text: Callable[[Any], str] = str,
    ):
        """Wraps an environment.

        Args:
          gym: the environment.
          instructions: a system message, which says what an action looks like.
          action: an action from the text of an answer; what raises ValueError is told to the agent, and costs a turn.
          text: an observation as text.
        """
        self._gym, self._instructions, self._action, self._text = gym, instructions, action, text

    async def reset(self, seed: int) -> Observation:
        """The first observation."""
        seen, _ = await asyncio.to_thread(self._gym.reset, seed=seed)
        system = [{"role": "system", "content": self._instructions}] if self._instructions else []
        return Observation([*system, {"role": "user", "content": self._text(seen)}])

    async def step(self, message: Message) -> Step:
        """Takes an action."""
        try:
            action = self._action((message.get("content") or "").strip())
        except ValueError as error:
            return Step([{"role": "user", "content": f"error: {error}"}])
        seen, reward, terminated, truncated, info = await asyncio.to_thread(self._gym.step, action)
        news = [{"role": "user", "content": self._text(seen)}]
        return Step(news, float(reward), terminated or truncated, {**info, "truncated": truncated})

    async def close(self) -> None:
        """Closes it."""
        await asyncio.to_thread(self._gym.close)
