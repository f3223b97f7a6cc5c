"""Where a step's experience comes from: sampled at once, over several steps, or from a recording."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.curriculum import Curriculum
from posttrain_jax.errors import UserError
from posttrain_jax.rewards.judges.tally import Tally
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.run.recipe import RL, Tasks
from posttrain_jax.stages import replaying
from posttrain_jax.stages.answering import budgets_of, judge_all, shaped, within
from posttrain_jax.stages.critic import split_critic
from posttrain_jax.stages.drawing import draw
from posttrain_jax.stages.experience import Experience, Trajectory
from posttrain_jax.stages.flight import Flight
from posttrain_jax.stages.heat import Heat
from posttrain_jax.stages.judging import Judging
from posttrain_jax.stages.scoring import Scoring
from posttrain_jax.stages.step import TrainState


class Collector(Protocol):
    """Collects; what it keeps from step to step is saved with each."""

    def collect(self, state: TrainState, number: int, draws: int) -> Experience:
        """The experience of a step; ``draws`` prompts were drawn before it."""
        ...

    def state(self) -> dict[str, Any]:
        """What is kept, JSON-able."""
        ...


@dataclasses.dataclass(frozen=True)
class AtOnce:
    """Every response of a step is sampled by its weights, and waited for; see `collect`.

    A step's randomness is ``fold_in(key, step)``. ``scoring`` mixes the rewards and asks the state's reward model, and
    ``judging`` adds a model's opinion. ``heat`` tells the temperature where it moves.
    """

    settings: RL
    questions: Tasks
    engine: Engine
    chat: Chat
    curriculum: Curriculum
    key: Key[Array, ""]
    scoring: Scoring | None = None
    judging: Judging | None = None
    heat: Heat | None = None

    def collect(self, state: TrainState, number: int, draws: int) -> Experience:
        """As `Collector` has it."""
        weights = self.engine.load(split_critic(state.weights)[0])
        heat = self.heat.at(weights, number) if self.heat else None
        found = collect(
            self.settings,
            self.questions,
            self.engine,
            weights,
            self.chat,
            self.curriculum,
            jax.random.fold_in(self.key, number),
            draws,
            self.judging,
            temperature=heat,
            **({"mix": partial(self.scoring, state.reward)} if self.scoring else {}),
        )
        return _observed(self.heat, found, heat)

    def state(self) -> dict[str, Any]:
        """As `Collector` has it."""
        return ({"scoring": self.scoring.state()} if self.scoring else {}) | _kept(self.heat)


@dataclasses.dataclass(frozen=True)
class InFlight:
    """Groups of many turns, or that go on beyond a step; see `Flight`, which has the scoring and the judging."""

    flight: Flight
    heat: Heat | None = None

    def collect(self, state: TrainState, number: int, draws: int) -> Experience:
        """As `Collector` has it; policies are numbered from 0."""
        weights = self.flight.engine.load(split_critic(state.weights)[0])
        heat = self.heat.at(weights, number) if self.heat else None
        found = self.flight.collect(weights, number - 1, draws, heat, reward=state.reward)
        return _observed(self.heat, found, heat)

    def state(self) -> dict[str, Any]:
        """As `Collector` has it."""
        flight = self.flight
        kept = {"flight": flight.state()} if flight.settings.carry_over else {}
        return kept | ({"scoring": flight.scoring.state()} if flight.scoring else {}) | _kept(self.heat)


@dataclasses.dataclass(frozen=True)
class Replayed:
    """Steps that were recorded in a folder (`replaying`)."""

    folder: Path

    def collect(self, state: TrainState, number: int, draws: int) -> Experience:
        """As `Collector` has it."""
        return replaying.read(self.folder, number)

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Another collector's steps, recorded in a folder and not learned from."""

    source: Collector
    folder: Path
    chat: Chat

    def collect(self, state: TrainState, number: int, draws: int) -> Experience:
        """As `Collector` has it, without groups."""
        experience = self.source.collect(state, number, draws)
        replaying.write(self.folder, number, experience, self.chat)
        return dataclasses.replace(experience, groups=())

    def state(self) -> dict[str, Any]:
        """The other's."""
        return self.source.state()


def _observed(heat: Heat | None, found: Experience, temperature: float | None) -> Experience:
    """The experience with its temperature; the heat takes its rewards in."""
    if heat is not None:
        heat.observe(float(np.mean([response.reward for response in found.everything])))
    return dataclasses.replace(found, temperature=temperature)


def _kept(heat: Heat | None) -> dict[str, Any]:
    return {"heat": heat.state()} if heat else {}


def collect(
    settings: RL,
    questions: Tasks,
    engine: Engine,
    weights: nnx.State,
    chat: Chat,
    curriculum: Curriculum,
    key: jax.Array,
    draws: int,
    judging: Judging | None = None,
    mix: Callable[[list[list[Trajectory]]], list[list[Trajectory]]] = lambda groups: groups,
    temperature: float | None = None,
) -> Experience:
    """Samples groups until ``settings.prompts`` of them have rewards that differ (DAPO's dynamic sampling).

    A group whose rewards are all equal has no gradient: it is dropped and another prompt drawn in its place, for at
    most ``settings.max_rounds`` batches. The curriculum sees every group. What could not be graded is left out of its
    group, and a canary is never trained on. ``mix`` may change the rewards of judged groups before length shapes
    them, and ``judging`` adds a model's opinion. ``temperature`` is the settings' unless it is given.

    Raises:
      UserError: what `draw` finds, not one response could be graded, or the judge cannot be asked at all.
    """
    limits = engine.limits
    budgets = budgets_of(settings)
    groups: list[list[Trajectory]] = []
    everything: list[Trajectory] = []
    rounds, ungraded, tally = 0, 0, Tally()
    while rounds < settings.max_rounds and len(groups) < settings.prompts:
        problems, prompts = [], []
        while len(problems) < settings.prompts - len(groups):
            problem, prompt, draws = draw(questions, curriculum, chat, draws, limits.max_prompt)
            problems.append(problem)
            prompts.append(prompt)
        answers = engine.generate(
            weights,
            prompts,
            jax.random.fold_in(key, rounds),
            samples=settings.group_size,
            temperature=settings.sampling.temperature if temperature is None else temperature,
        )
        rounds += 1
        answers = [
            [within(budgets.get(problem.task), c) for c in completions]
            for problem, completions in zip(problems, answers, strict=True)
        ]
        judged = judge_all(chat, problems, prompts, answers, format_reward=settings.format_reward)
        graded = [[t for t in group if not t.verdict.infrastructure] for group in judged]
        ungraded += sum(map(len, judged)) - sum(map(len, graded))
        found = [shaped(group, settings, limits.max_response) for group in mix([group for group in graded if group])]
        if judging:
            found, told = judging(weights, found, jax.random.fold_in(key, settings.max_rounds + rounds))
            tally += told
        for group in found:
            problem = group[0].problem
            everything += group
            if problem.canary:
                continue
            curriculum.observe(problem.task, problem.level, sum(t.verdict.correct for t in group), len(group))
            usable = [t for t in group if not t.masked]
            if len({t.reward for t in usable}) > 1:
                groups.append(usable)
        if not everything:
            raise UserError(f"not one of {ungraded} responses could be graded: {judged[-1][-1].verdict.reason}")
    return Experience(groups, everything, draws, rounds, ungraded, tally)
