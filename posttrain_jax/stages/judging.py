"""A model's opinion in the reward: the policy as its own critic, or a judge elsewhere, beside the verifier."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key

from posttrain_jax.chat.format import Chat, Message
from posttrain_jax.data.tasks import Problem
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.parallel import exchange
from posttrain_jax.rewards.judges import endpoint as endpoints
from posttrain_jax.rewards.judges.endpoint import Endpoint
from posttrain_jax.rewards.judges.genrm import compared, graded, normalised
from posttrain_jax.rewards.judges.judge import Judge, Prompted, seed_of
from posttrain_jax.rewards.judges.refresh import agreement
from posttrain_jax.rewards.judges.rubrics import GENERAL, compare_messages, task_rubrics
from posttrain_jax.rewards.judges.sampled import sampled
from posttrain_jax.rewards.judges.self_critique import Outcome, Pair, rank, win_rates
from posttrain_jax.rewards.judges.tally import Tally, count
from posttrain_jax.rewards.judges.transcript import cut, transcript
from posttrain_jax.rollout.batched import Batched
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Sampler
from posttrain_jax.run import recipe as recipes
from posttrain_jax.run.recipe import Recipe
from posttrain_jax.stages.experience import Judged
from posttrain_jax.stages.playing import Played
from posttrain_jax.stages.setup import make_engine

CACHE = "judge.sqlite"
SEAM = 8  # tokens that a text may take more between others than it takes alone

Scores = list[float | None]
Outcomes = dict[Any, Outcome]  # by `Pair` of responses, or by response
Response = TypeVar("Response", bound=Judged)


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

    The policy judges through an engine of its own limits; a judge elsewhere is asked by the first process alone.
    """

    def __init__(
        self, settings: recipes.Judge, chat: Chat, *, engine: Engine | None = None, endpoint: Endpoint | None = None
    ):
        self.settings, self.chat, self.engine, self.endpoint = settings, chat, engine, endpoint
        self.rubrics = GENERAL + task_rubrics(settings.rubrics)

    def __call__(
        self, weights: nnx.State, groups: Sequence[Sequence[Response]], key: Key[Array, ""]
    ) -> tuple[list[list[Response]], Tally]:
        """`outcomes` of groups and what they add, by all processes together: the first tells what it was told.

        Raises:
          UserError: the judge could not be asked about any.
        """
        seed = int(np.asarray(jax.random.bits(key, (), np.uint32)))

        async def all_of_them(judge: Judge) -> list[Outcomes]:
            asked = (self.outcomes(judge, group, seed_of(seed, i)) for i, group in enumerate(groups))
            return list(await asyncio.gather(*asked))

        if self.engine:
            found = asyncio.run(all_of_them(self.judge(Batched(self.engine, weights))))
        else:
            found = exchange.gather(self.endpoint and asyncio.run(all_of_them(self.judge())))[0]
        added, tally = self.added(groups, found)
        tally.check()
        return added, tally

    def judge(self, sampler: Sampler | None = None) -> Judge:
        """The judge elsewhere, or else the policy as it speaks through a sampler."""
        settings = self.settings
        if self.endpoint:
            return Prompted(self.endpoint.ask)
        assert sampler is not None
        return sampled(
            sampler,
            self.chat,
            max_prompt=settings.max_prompt,
            max_tokens=settings.max_response,
            temperature=settings.temperature,
        )

    def shown(self, group: Sequence[Judged]) -> list[str]:
        """What is read of each response: an answer, or a whole episode, cut so that two of a length fit a question."""
        return [
            self._transcript(t.problem, t.episode.messages) if isinstance(t, Played) else t.verdict.answer
            for t in group
        ]

    async def outcomes(self, judge: Judge, group: Sequence[Judged], seed: int) -> Outcomes:
        """What the judge makes of the responses to one prompt: by pair, or by response.

        Nothing where there is nothing to hold them against: one alone, or a world that nobody demonstrates.
        """
        settings, problem, answers = self.settings, group[0].problem, self.shown(group)
        if settings.name == "self_critique":
            return await rank(judge, problem.question, answers, self.rubrics, opponents=settings.opponents, seed=seed)
        reference = await self._reference(problem)
        if reference is None:
            return {}
        asked = {text: seed_of(seed, i) for i, text in enumerate(dict.fromkeys(answers))}  # equal answers once
        if settings.reference == "grade":
            wanted = [graded(judge, problem.question, text, reference, s) for text, s in asked.items()]
        else:
            wanted = [compared(judge, problem.question, text, reference, self.rubrics, s) for text, s in asked.items()]
        found = dict(zip(asked, await asyncio.gather(*wanted), strict=True))
        return {i: found[text] for i, text in enumerate(answers)}

    def added(
        self, groups: Sequence[Sequence[Response]], outcomes: Sequence[Outcomes]
    ) -> tuple[list[list[Response]], Tally]:
        """The groups with what the judge adds to their rewards, and its tally.

        A response for which it could not be asked is masked; where it gave no verdict, it has no opinion.
        """
        pairs = [
            (found, [t.verdict.correct for t in group]) for found, group in zip(outcomes, groups, strict=True) if found
        ]
        tally = sum((count(found.values(), agreement(_as_pairs(found), right)) for found, right in pairs), Tally())
        return [
            [self._added(t, reward) for t, reward in zip(group, rewards, strict=True)] if found else list(group)
            for group, found, rewards in zip(groups, outcomes, self._rewards(groups, outcomes), strict=True)
        ], tally

    async def _reference(self, problem: Problem) -> str | None:
        """What is right: the true answer, or the worked solution; of a world, its solver's episode, if it has one."""
        if not worlds.is_world(problem.task):
            return problem.answer if self.settings.reference == "grade" else f"{problem.reasoning}\n{problem.answer}"
        place = worlds.world(problem.task)
        if place.solve is None:
            return None
        shown = await place.demonstrate(problem.level, problem.entry["seed"])
        return self._transcript(problem, shown["messages"])

    def _transcript(self, problem: Problem, messages: Sequence[Message]) -> str:
        """A conversation within its share of the judge's question, which has two such texts."""
        frame = compare_messages(problem.question, "", "", self.rubrics)
        room = self.settings.max_prompt - len(self.chat.encode(frame, add_generation_prompt=True)[0])
        return cut(transcript(messages, problem.question), room // 2 - SEAM, self.chat.tokenizer)

    def _rewards(self, groups: Sequence[Sequence[Judged]], outcomes: Sequence[Outcomes]) -> list[Scores]:
        """Win rates less ½, or scores over the batch's deviation."""
        if self.settings.name == "self_critique":
            rates = [win_rates(len(group), found) for group, found in zip(groups, outcomes, strict=True)]
            return [[None if rate is None else rate - 0.5 for rate in mine] for mine in rates]
        scores = iter(normalised([one.score for found in outcomes for one in found.values()], self.settings.clip))
        return [[next(scores) if found else None for _ in group] for group, found in zip(groups, outcomes, strict=True)]

    def _added(self, response: Response, reward: float | None) -> Response:
        if reward is None:
            return dataclasses.replace(response, masked=True)
        opinion = self.settings.weight * reward
        return dataclasses.replace(response, reward=response.reward + opinion, opinion=opinion)


def _as_pairs(found: Outcomes) -> dict[Pair, Outcome]:
    """Outcomes by pair; scores of single responses are compared with one another."""
    if not all(isinstance(place, int) for place in found):
        return found
    scores = {i: one.score for i, one in found.items() if one.score is not None}
    pairs = itertools.combinations(scores, 2)
    return {(i, j): Outcome(0.5 + 0.5 * float(np.sign(scores[i] - scores[j]))) for i, j in pairs}
