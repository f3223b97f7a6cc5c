"""Plays episodes: a sampler answers, an environment answers back, until it is done or a budget has run out.

* A budget that runs out ends the episode with a penalty added to its reward (Kimi K2).
* A malformed answer ends it with reward 0 (GLM-4.5); a tool that fails is an observation like any other.
* An environment that breaks down ends it without a verdict: ``infrastructure``.
* A context that is full loses its old tool results, and goes on as a new segment.

All that is drawn derives from an episode's two seeds; episodes are played at once and do not depend on each other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from posttrain_jax.chat.format import Chat
from posttrain_jax.environments.conversation import Conversation
from posttrain_jax.environments.environment import Environment, EnvironmentFailure, Observation
from posttrain_jax.rollout.request import Request, Sampler
from posttrain_jax.rollout.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an episode may use.

    Attributes:
      turns: answers.
      tokens: sampled tokens, all answers together.
      answer: sampled tokens of one answer.
      context: longest prompt with its answer, in tokens.
      seconds: on the agent's clock, looked at before each answer; no bound if None.
      penalty: added to the reward when one of these has run out.
      keep: latest tool results that stay visible when the context is full.
      segments: times that the context may be filled; 1 means that nothing is hidden.
    """

    turns: int
    tokens: int
    answer: int
    context: int
    seconds: float | None = None
    penalty: float = -0.5
    keep: int = 3
    segments: int | None = None


@dataclasses.dataclass(frozen=True)
class Episode:
    """What was played.

    Attributes:
      segments: the tokens; several where old tool results were hidden. Each sampled token is in exactly one mask.
      messages: the conversation in full.
      reward: the sum of ``rewards`` and of the penalty of a budget that ran out; 0 after a malformed answer or a
        breakdown.
      rewards: what the environment gave for each answer that it took.
      ended: "done", "format", the budget that ran out ("turns", "tokens", "answer", "context" or "seconds"),
        "infrastructure" if the environment broke down, or another reason for which the sampler broke off, such as
        "repetition".
      info: the environment's last words; after a malformed answer, its ``errors``; the ``reason`` of a breakdown.
    """

    segments: Sequence[Trajectory]
    messages: Sequence[dict[str, Any]]
    reward: float
    rewards: Sequence[float]
    ended: str
    info: dict[str, Any]


class Seeds(NamedTuple):
    """``task`` chooses what the environment asks, ``answers`` what is sampled; a group shares the first."""

    task: int
    answers: int


@dataclasses.dataclass(frozen=True)
class Agent:
    """A policy that plays.

    Attributes:
      sampler: answers requests.
      chat: the family's format and tokenizer.
      budget: of each episode.
      temperature: of each answer.
      thinking: whether it reasons before it answers.
      clock: seconds, for ``Budget.seconds``.
    """

    sampler: Sampler
    chat: Chat
    budget: Budget
    temperature: float = 1.0
    thinking: bool = True
    clock: Callable[[], float] = time.monotonic

    async def play_all(
        self, environments: Sequence[Callable[[], Environment]], seeds: Sequence[Seeds], *, concurrency: int
    ) -> list[Episode]:
        """Plays one episode for each environment and pair of seeds, ``concurrency`` at a time.

        Raises:
          ValueError: not as many environments as pairs of seeds.
          ExceptionGroup: an environment or the sampler raised; the other episodes are given up and closed.
        """
        places = asyncio.Semaphore(concurrency)

        async def one(make: Callable[[], Environment], pair: Seeds) -> Episode:
            async with places:
                return await self.play(make(), pair)

        pairs = list(zip(environments, seeds, strict=True))
        async with asyncio.TaskGroup() as group:
            played = [group.create_task(one(make, pair)) for make, pair in pairs]
        return [task.result() for task in played]

    async def play(self, environment: Environment, seeds: Seeds) -> Episode:
        """Plays one episode and closes the environment."""
        try:
            return await self._play(environment, seeds)
        finally:
            await environment.close()

    async def _play(self, environment: Environment, seeds: Seeds) -> Episode:
        began = self.clock()
        try:
            observation = await environment.reset(seeds.task)
        except EnvironmentFailure as failure:
            nothing = Conversation(self.chat, Observation([{"role": "user", "content": ""}]), self.thinking)
            return Episode(nothing.segments, nothing.messages, 0.0, [], "infrastructure", {"reason": str(failure)})
        talk = Conversation(self.chat, observation, self.thinking)
        rewards: list[float] = []
        sampled = 0

        def over(ended: str, info: Any = None) -> Episode:
            if ended in ("format", "infrastructure"):
                reward = 0.0
            else:
                reward = sum(rewards) + (self.budget.penalty if ended != "done" else 0.0)
            return Episode(talk.segments, talk.messages, reward, rewards, ended, dict(info or {}))

        info: Any = {}
        for turn in range(self.budget.turns):
            if self.budget.seconds is not None and self.clock() - began >= self.budget.seconds:
                return over("seconds", info)
            full = len(talk.prompt) + min(self.budget.answer, self.budget.tokens - sampled) > self.budget.context
            if full and (self.budget.segments is None or len(talk.segments) < self.budget.segments):
                talk.hide(self.budget.keep)
            room = {
                "tokens": self.budget.tokens - sampled,
                "context": self.budget.context - len(talk.prompt),
                "answer": self.budget.answer,
            }
            tightest = min(room, key=lambda name: room[name])
            if room[tightest] <= 0:
                return over(tightest, info)
            request = Request(talk.prompt, answer_seed(seeds.answers, turn), room[tightest], self.temperature)
            completion = await self.sampler.complete(request)
            message = talk.answered(request, completion)
            sampled += len(completion.tokens)
            if completion.finish != "stop":
                return over(tightest if completion.finish == "length" else completion.finish, info)
            if errors := message.get("errors"):
                return over("format", {"errors": errors})
            try:
                step = await environment.step(message)
            except EnvironmentFailure as failure:
                return over("infrastructure", {"reason": str(failure)})
            rewards.append(step.reward)
            info = step.info
            if step.done:
                return over("done", info)
            talk.came_back(step.messages)
        return over("turns", info)


def answer_seed(seed: int, turn: int) -> int:
    """The seed of an episode's answer number ``turn``."""
    return int(np.random.SeedSequence([seed, turn]).generate_state(1)[0]) >> 1
