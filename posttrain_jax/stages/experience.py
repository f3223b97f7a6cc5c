"""What reinforcement learning learns from: responses that are judged, in groups worth training on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from posttrain_jax.chat.format import Chat
from posttrain_jax.data.tasks import AREAS, Problem
from posttrain_jax.rewards.alarm import hacked
from posttrain_jax.rewards.judges.tally import Tally
from posttrain_jax.rewards.length_bias import correlation
from posttrain_jax.rewards.verdict import Verdict
from posttrain_jax.rollout.request import Completion
from posttrain_jax.rollout.trajectory import Segment, answer

CUT_OFF = ("length", "budget", "turns", "tokens", "answer", "context", "seconds")


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One response, judged.

    Attributes:
      masked: its judge could not be asked about it; it is not trained on.
      score: a reward model's, before anything is made of it.
      opinion: what a judge added to the reward.
    """

    problem: Problem
    prompt: list[int]
    completion: Completion
    message: dict
    verdict: Verdict
    reward: float
    masked: bool = False
    score: float | None = None
    opinion: float | None = None

    @property
    def segments(self) -> list[Segment]:
        """What is trained, in one piece."""
        return [answer(self.prompt, self.completion)]

    @property
    def length(self) -> int:
        """Tokens that were sampled."""
        return len(self.completion.tokens)

    @property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + self.length

    @property
    def finish(self) -> str:
        """Why it ended."""
        return self.completion.finish

    def shown(self, chat: Chat) -> dict:
        """What samples.jsonl says of its words."""
        return {
            "prompt": self.problem.question,
            "response": chat.tokenizer.decode([int(t) for t in self.completion.tokens]),
            "reasoning": self.message.get("reasoning_content", ""),
        }


class Judged(Protocol):
    """Anything that was sampled and judged, of one turn or many: a `Trajectory`, or an episode (`playing.Played`).

    All are dataclasses, so that models may add to what a verifier said (`dataclasses.replace`).
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def problem(self) -> Problem: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def reward(self) -> float: ...
    @property
    def segments(self) -> Sequence[Segment]: ...
    @property
    def length(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def finish(self) -> str: ...
    @property
    def masked(self) -> bool: ...
    @property
    def score(self) -> float | None: ...
    @property
    def opinion(self) -> float | None: ...
    def shown(self, chat: Chat) -> dict: ...


@dataclasses.dataclass(frozen=True)
class Experience:
    """A step's rollouts.

    Attributes:
      groups: responses to one prompt each, with rewards that differ; what is trained on.
      everything: all trajectories sampled and judged, for the statistics.
      ungraded: responses that a failure of the grader left without a verdict; they are nowhere else.
      draws: prompts drawn from the curriculum so far in the run.
      rounds: batches of prompts it took.
      tally: what a model that judged them did.
      temperature: that they were sampled at, where it moves.
    """

    groups: Sequence[Sequence[Judged]]
    everything: Sequence[Judged]
    draws: int
    rounds: int
    ungraded: int = 0
    tally: Tally = Tally()
    temperature: float | None = None

    @property
    def hacked(self) -> list[Judged]:
        """Answers judged correct on canaries, which have no correct answer."""
        found = hacked([t.problem.canary for t in self.everything], [t.verdict for t in self.everything])
        return [self.everything[i] for i in found]


def statistics(experience: Experience) -> dict[str, float]:
    """What a step's rollouts say about the policy; ``score_…`` are a reward model's correlations."""
    everything = experience.everything
    known = [(t.score, t.length, t.verdict.correct) for t in everything if t.score is not None]
    scored = {}
    if known:
        scores, long, right = np.array(known, np.float64).T
        scored = {
            "score": float(scores.mean()),
            "score_length": correlation(scores, long),
            "score_correct": correlation(scores, right),
        }
    return {
        "reward": float(np.mean([t.reward for t in everything])),
        "pass_rate": float(np.mean([t.verdict.correct for t in everything])),
        "well_formed": float(np.mean([t.verdict.well_formed for t in everything])),
        "response_length": float(np.mean([t.length for t in everything])),
        "cut_off": float(np.mean([t.finish in CUT_OFF for t in everything])),
        "repeating": float(np.mean([t.finish == "repetition" for t in everything])),
        "level": float(np.mean([t.problem.level for t in everything])),
        "ungraded": float(experience.ungraded),
        "hacked": float(len(experience.hacked)),
        "groups": float(len(experience.groups)),
        "rounds": float(experience.rounds),
        **experience.tally.metrics(),
        **scored,
        **_by_area(everything),
    }


def _by_area(everything: Sequence[Judged]) -> dict[str, float]:
    """``reward/arithmetic`` and the like, of every area that was asked; a world is an area of its own.

    ``share/AREA`` is its part of the responses, which are as many for every prompt.
    """
    found: dict[str, float] = {}
    areas = [AREAS.get(t.problem.task, t.problem.task) for t in everything]
    for area in sorted(set(areas)):
        own = [t for t, each in zip(everything, areas, strict=True) if each == area]
        found[f"reward/{area}"] = float(np.mean([t.reward for t in own]))
        found[f"pass_rate/{area}"] = float(np.mean([t.verdict.correct for t in own]))
        found[f"share/{area}"] = len(own) / len(everything)
        found[f"response_length/{area}"] = float(np.mean([t.length for t in own]))
    return found


def sample(chat: Chat, trajectory: Judged) -> dict:
    """A trajectory as it is written to samples.jsonl, behind its stage and step."""
    return {
        "task": trajectory.problem.task,
        "level": trajectory.problem.level,
        **trajectory.shown(chat),
        "answer": trajectory.verdict.answer,
        "expected": trajectory.problem.answer,
        "reward": trajectory.reward,
        "parts": {"verifier": trajectory.verdict.reward, **_opinions(trajectory)},
        "correct": trajectory.verdict.correct,
        "canary": trajectory.problem.canary,
        "tokens": trajectory.length,
        "finish": trajectory.finish,
        **({"score": trajectory.score} if trajectory.score is not None else {}),
    }


def _opinions(trajectory: Judged) -> dict[str, float]:
    """What models said of it, before lengths shape the reward."""
    told = {"model": trajectory.score, "judge": trajectory.opinion}
    return {name: value for name, value in told.items() if value is not None}
