"""Problems of worlds, played to their end: episodes of many turns, judged."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from flax import nnx

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments import worlds
from posttrain_jax.environments.agent import Agent, Budget, Episode, Seeds
from posttrain_jax.parallel import exchange
from posttrain_jax.rewards.verdict import Verdict, broken, right, wrong
from posttrain_jax.rollout.decode import Limits
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Sampler
from posttrain_jax.rollout.rounds import Rounds
from posttrain_jax.rollout.trajectory import Segment
from posttrain_jax.run.recipe import Episodes


@dataclasses.dataclass(frozen=True)
class Played:
    """An episode, judged; it is right if the world gave full marks.

    Attributes:
      reward: the episode's, and what models added to it.
      masked, score, opinion: as of `experience.Trajectory`.
    """

    problem: Problem
    episode: Episode
    reward: float
    masked: bool = False
    score: float | None = None
    opinion: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What the world says; nothing if it broke down."""
        episode = self.episode
        if episode.ended == "infrastructure":
            return broken(str(episode.info["reason"]))
        correct = episode.ended == "done" and sum(episode.rewards) >= 1.0
        last = str(episode.messages[-1].get("content") or "")
        return right(last) if correct else wrong(episode.ended, last, well_formed=episode.ended != "format")

    @property
    def segments(self) -> list[Segment]:
        """What is trained, in pieces."""
        return [trajectory.segment for trajectory in self.episode.segments]

    @property
    def length(self) -> int:
        """Tokens that were sampled."""
        return sum(turn.end - turn.start for trajectory in self.episode.segments for turn in trajectory.turns)

    @property
    def size(self) -> int:
        """Tokens in all segments."""
        return sum(len(trajectory) for trajectory in self.episode.segments)

    @property
    def finish(self) -> str:
        """Why it ended."""
        return self.episode.ended

    def shown(self, chat: Chat) -> dict:
        """What samples.jsonl says of its words."""
        last = self.episode.segments[-1]
        return {
            "prompt": self.problem.question,
            "response": chat.tokenizer.decode(last.tokens[last.turns[0].start :].tolist()),
            "messages": list(self.episode.messages),
            "turns": len(self.episode.rewards),
            "rewards": list(self.episode.rewards),
        }


def make_agent(episodes: Episodes, limits: Limits, sampler: Sampler, chat: Chat, temperature: float) -> Agent:
    """An agent with a recipe's budgets, and an engine's."""
    budget = Budget(
        turns=episodes.turns,
        tokens=episodes.tokens or episodes.turns * limits.max_response,
        answer=limits.max_response,
        context=limits.positions,
        seconds=episodes.seconds or None,
        penalty=-episodes.penalty,
        keep=episodes.keep,
        segments=episodes.segments,
    )
    return Agent(sampler, chat, budget, temperature, episodes.thinking)


def play(
    engine: Engine,
    weights: nnx.State,
    chat: Chat,
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    episodes: Episodes,
    temperature: float,
) -> list[Played]:
    """An episode of each problem with each answer drawn from its seed; of several processes each plays a share.

    Raises:
      ValueError: the engine lies on devices of several processes.
      ExceptionGroup: an environment broke.
    """
    pairs = list(zip(problems, seeds, strict=True))

    def share(chosen: Sequence[int]) -> list[Episode]:
        async def all_of_them() -> list[Episode]:
            sampler = Rounds(engine, weights, reuse=episodes.reuse)
            agent = make_agent(episodes, engine.limits, sampler, chat, temperature)
            return await agent.play_all(
                [_maker(pairs[i][0]) for i in chosen],
                [Seeds(pairs[i][0].entry["seed"], pairs[i][1]) for i in chosen],
                concurrency=engine.limits.slots * engine.banks,
            )

        return asyncio.run(all_of_them()) if chosen else []

    played = exchange.spread(range(len(pairs)), share)
    return [Played(problem, episode, episode.reward) for problem, episode in zip(problems, played, strict=True)]


def _maker(problem: Problem) -> Callable:
    return lambda: worlds.environment(problem)
