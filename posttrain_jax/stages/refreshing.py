"""The closed loop of a critic: the policy judges pairs whose better answer the verifier knows, and learns from that.

Kimi K2, arXiv 2507.20534, section 3.2.2. Such a question is one more verifiable task: its responses are sampled in
groups, rewarded where their verdict is the verifier's, and trained on in the step that their answers come from.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.tasks import Problem
from posttrain_jax.rewards.judges.judge import seed_of
from posttrain_jax.rewards.judges.refresh import Lesson, lessons
from posttrain_jax.rewards.judges.rubrics import Rubric, read_comparison, verdict_line
from posttrain_jax.rewards.verdict import right, wrong
from posttrain_jax.rollout.engine import Engine
from posttrain_jax.rollout.request import Completion
from posttrain_jax.run.recipe import RL
from posttrain_jax.stages.answering import answered
from posttrain_jax.stages.critic import split_critic
from posttrain_jax.stages.experience import Judged, Trajectory

TASK = "critic"


@dataclasses.dataclass(frozen=True)
class Refresh:
    """What a step teaches its critic; a function of the step's responses, the weights and ``key``.

    Attributes:
      engine: samples verdicts, within the judge's limits of length.
      rubrics: that the critic is shown when it judges.
      shown: what it reads of each response of a group.
    """

    settings: RL
    engine: Engine
    chat: Chat
    rubrics: Sequence[Rubric]
    key: Key[Array, ""]
    shown: Callable[[Sequence[Judged]], list[str]] = lambda group: [t.verdict.answer for t in group]

    def lessons(self, everything: Sequence[Judged], number: int) -> list[Lesson]:
        """Both orders of up to ``judge.refresh`` pairs of a step, each of another question; none that is too long."""
        groups = [list(g) for _, g in itertools.groupby(everything, key=lambda t: id(t.problem))]
        random.Random(number).shuffle(groups)
        found: list[Lesson] = []
        for place, group in enumerate(groups):
            problem = group[0].problem
            if problem.canary or len(found) == 2 * self.settings.judge.refresh:
                continue
            told = self.shown(group), [t.verdict.correct for t in group]
            pair = lessons(problem.question, *told, self.rubrics, most=1, seed=seed_of(number, place))
            if all(len(self._prompt(lesson)) <= self.engine.limits.max_prompt for lesson in pair):
                found += pair
        return found

    def judged(
        self, weights: nnx.State, asked: Sequence[Lesson], number: int, temperature: float | None = None
    ) -> list[list[Trajectory]]:
        """A group of responses to each lesson, rewarded where they agree with the verifier; ``weights`` as trained.

        ``temperature`` is the settings' unless it is given.
        """
        prompts = [self._prompt(lesson) for lesson in asked]
        heat = self.settings.sampling.temperature if temperature is None else temperature
        samples = self.settings.group_size
        key = jax.random.fold_in(self.key, number)
        loaded = self.engine.load(split_critic(weights)[0])
        answers = self.engine.generate(loaded, prompts, key, samples=samples, temperature=heat) if prompts else []
        return [
            [self._one(lesson, prompt, _drawn_by(number - 1, completion)) for completion in completions]
            for lesson, prompt, completions in zip(asked, prompts, answers, strict=True)
        ]

    def _prompt(self, lesson: Lesson) -> list[int]:
        return self.chat.encode(lesson.messages, add_generation_prompt=True)[0]

    def _one(self, lesson: Lesson, prompt: list[int], completion: Completion) -> Trajectory:
        message = answered(self.chat, completion)
        said, wanted = read_comparison(message["content"]), verdict_line(lesson.verdict)
        if said == lesson.verdict:
            verdict = right(message["content"])
        else:
            partly = 0.0 if said is None else self.settings.format_reward
            verdict = wrong("another verdict", message["content"], reward=partly, well_formed=said is not None)
        problem = Problem(TASK, 0, 0, lesson.messages[-1]["content"], wanted, "", {})
        return Trajectory(problem, prompt, completion, message, verdict, verdict.reward)


def _drawn_by(version: int, completion: Completion) -> Completion:
    return dataclasses.replace(completion, versions=np.full(len(completion.tokens), version, np.int32))


def agreed(judged: Sequence[Sequence[Trajectory]]) -> float:
    """The share of verdicts that are the verifier's; of two answers, ½ is chance."""
    return float(np.mean([t.verdict.correct for group in judged for t in group]))
