"""A model's opinion in the reward: the policy as its own critic, or a judge elsewhere, beside the verifier."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key

from posttrain_jax.chat.format import Chat
from posttrain_jax.errors import UserError
from posttrain_jax.parallel import exchange
from posttrain_jax.rewards.judges import endpoint as endpoints
from posttrain_jax.rewards.judges.endpoint import Endpoint
from posttrain_jax.rewards.judges.genrm import compared, graded, normalised
from posttrain_jax.rewards.judges.judge import Judge, Prompted, seed_of
from posttrain_jax.rewards.judges.refresh import agreement
from posttrain_jax.rewards.judges.rubrics import GENERAL, task_rubrics
from posttrain_jax.rewards.judges.sampled import sampled
from posttrain_jax.rewards.judges.self_critique import Outcome, Pair, rank, win_rates
from posttrain_jax.rewards.judges.tally import Tally, count
from posttrain_jax.rollout.batched import Batched
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.run import recipe as recipes
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.stages.experience import Trajectory
from posttrain_jax.stages.setup import make_engine

CACHE = "judge.sqlite"

Scores = list[float | None]


def make_judging(recipe: Recipe, chat: Chat, mesh: Mesh, workdir: Path) -> Judging | None:
    """What a recipe says of its judge; None where it has none. Answers of a judge elsewhere are kept in ``workdir``.

    Raises:
      UserError: the environment variable that should hold the key is not set.
    """
    settings = recipe.rl.judge
    if settings.name == "none":
        return None
    if not settings.endpoint.url:
        limits = {"max_prompt": settings.max_prompt, "max_response": settings.max_response}
        return Judging(settings, chat, engine=make_engine(recipe, chat, mesh=mesh, routing=False, **limits))
    first = jax.process_index() == 0
    return Judging(settings, chat, endpoint=make_endpoint(settings, workdir / CACHE) if first else None)


def make_endpoint(settings: recipes.Judge, cache: Path) -> Endpoint:
    """The judge elsewhere that the settings name."""
    there = settings.endpoint
    if there.key and not os.environ.get(there.key):
        raise UserError(f"rl.judge.endpoint.key={there.key!r}: no such environment variable; set it to the judge's key")
    return Endpoint(
        there.url,
        model=there.model,
        max_tokens=settings.max_response,
        temperature=settings.temperature,
        key=os.environ[there.key] if there.key else "",
        limits=endpoints.Limits(
            timeout=there.timeout,
            attempts=there.attempts,
            rate=there.rate,
            concurrency=there.concurrency,
            budget=there.budget,
        ),
        cache=cache,
    )


class Judging:
    """Adds a judge's reward to groups of responses.

    The policy judges through an engine of its own limits, in all processes together; a judge elsewhere is asked by the
    first process, which tells the others.
    """

    def __init__(
        self, settings: recipes.Judge, chat: Chat, *, engine: Engine | None = None, endpoint: Endpoint | None = None
    ):
        self.settings, self.chat, self.engine, self.endpoint = settings, chat, engine, endpoint
        self.rubrics = GENERAL + task_rubrics(settings.rubrics)

    def __call__(
        self, weights: nnx.State, groups: list[list[Trajectory]], key: Key[Array, ""]
    ) -> tuple[list[list[Trajectory]], Tally]:
        """The groups with what the judge adds to their rewards, and its tally.

        A response for which it could not be asked is masked; where it gave no verdict, it has no opinion.

        Raises:
          UserError: it could not be asked about any.
        """
        seed = int(np.asarray(jax.random.bits(key, (), np.uint32)))
        if self.engine:
            outcomes = asyncio.run(self._outcomes(self._policy(self.engine, weights), groups, seed))
        else:
            told = self.endpoint and asyncio.run(self._outcomes(Prompted(self.endpoint.ask), groups, seed))
            outcomes = exchange.gather(told)[0]
        tally = sum(
            (
                count(found.values(), agreement(_as_pairs(found), [t.verdict.correct for t in group]))
                for found, group in zip(outcomes, groups, strict=True)
            ),
            Tally(),
        )
        if tally.asked and tally.failed == tally.asked:
            raise UserError(f"the judge could not be asked about any response: {tally.failure}")
        return [
            [self._added(t, reward) for t, reward in zip(group, rewards, strict=True)]
            for group, rewards in zip(groups, self._rewards(groups, outcomes), strict=True)
        ], tally

    def _policy(self, engine: Engine, weights: nnx.State) -> Judge:
        settings = self.settings
        return sampled(
            Batched(engine, weights),
            self.chat,
            max_prompt=settings.max_prompt,
            max_tokens=settings.max_response,
            temperature=settings.temperature,
        )

    async def _outcomes(self, judge: Judge, groups: list[list[Trajectory]], seed: int) -> list[dict]:
        return list(await asyncio.gather(*(self._one(judge, g, seed_of(seed, i)) for i, g in enumerate(groups))))

    async def _one(self, judge: Judge, group: list[Trajectory], seed: int) -> dict[Pair, Outcome] | dict[int, Outcome]:
        """A group's outcomes: by pair, or by response."""
        settings, problem = self.settings, group[0].problem
        answers = [t.verdict.answer for t in group]
        if settings.name == "self_critique":
            return await rank(judge, problem.question, answers, self.rubrics, opponents=settings.opponents, seed=seed)
        asked = {text: seed_of(seed, i) for i, text in enumerate(dict.fromkeys(answers))}  # equal answers once
        if settings.reference == "grade":
            wanted = [graded(judge, problem.question, text, problem.answer, s) for text, s in asked.items()]
        else:
            solution = f"{problem.reasoning}\n{problem.answer}"
            wanted = [compared(judge, problem.question, text, solution, self.rubrics, s) for text, s in asked.items()]
        found = dict(zip(asked, await asyncio.gather(*wanted), strict=True))
        return {i: found[text] for i, text in enumerate(answers)}

    def _rewards(self, groups: list[list[Trajectory]], outcomes: Sequence[dict]) -> list[Scores]:
        """Win rates less ½, or scores over the batch's deviation."""
        if self.settings.name == "self_critique":
            rates = [win_rates(len(group), found) for group, found in zip(groups, outcomes, strict=True)]
            return [[None if rate is None else rate - 0.5 for rate in mine] for mine in rates]
        scores = normalised([one.score for found in outcomes for one in found.values()], self.settings.clip)
        flat = iter(scores)
        return [[next(flat) for _ in group] for group in groups]

    def _added(self, trajectory: Trajectory, reward: float | None) -> Trajectory:
        if reward is None:
            return dataclasses.replace(trajectory, masked=True)
        opinion = self.settings.weight * reward
        return dataclasses.replace(trajectory, reward=trajectory.reward + opinion, opinion=opinion)


def _as_pairs(found: dict) -> dict[Pair, Outcome]:
    """Outcomes by pair; scores of single responses are compared with one another."""
    if not all(isinstance(place, int) for place in found):
        return found
    scores = {i: one.score for i, one in found.items() if one.score is not None}
    pairs = itertools.combinations(scores, 2)
    return {(i, j): Outcome(0.5 + 0.5 * float(np.sign(scores[i] - scores[j]))) for i, j in pairs}
