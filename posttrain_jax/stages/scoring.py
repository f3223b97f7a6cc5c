"""The reward of a judged response as the recipe mixes it: its verifier's, and a reward model's score."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from flax import nnx

from posttrain_jax.data.tasks import AREAS, area
from posttrain_jax.environments import worlds
from posttrain_jax.rewards import mixture
from posttrain_jax.rewards.length_bias import without_slope
from posttrain_jax.rewards.running import Running
from posttrain_jax.run.recipe import Reward
from posttrain_jax.stages.experience import Judged
from posttrain_jax.stages.reward_model import Scorer

Response = TypeVar("Response", bound=Judged)


class Scoring:
    """Mixes rewards. A score is freed of what length alone earns it, normalised by all scores so far, and clipped.

    A world is a domain of its own.

    Attributes:
      running: mean and deviation of the scores so far.
      asks: whether the model's score weighs anything anywhere.
    """

    def __init__(self, settings: Reward, scorer: Scorer):
        self._settings, self._scorer = settings, scorer
        self._everywhere = everywhere = {"verifier": settings.verifier_weight, "model": settings.model_weight}
        domains = sorted({*AREAS.values(), *worlds.WORLDS})
        self._weights = mixture.weights(everywhere, settings.domains, domains)
        self.asks = any(own["model"] > 0 for own in self._weights.values())
        self.running = Running()

    def __call__(self, model: nnx.State | None, groups: Sequence[Sequence[Response]]) -> list[list[Response]]:
        """The groups with their mixed rewards, and the raw scores of ``model`` where it weighs anything.

        It reads a response as the trainer does, to its end; an episode that was played in several segments, in the
        last. Where nothing was sampled nothing is scored.
        """
        flat = [response for group in groups for response in group]
        rewards = {"verifier": [t.reward for t in flat], "model": [0.0] * len(flat)}
        spoken = [i for i, t in enumerate(flat) if t.segments]
        if self.asks and model is not None and spoken:
            raw = self._scorer(model, [flat[i].segments[-1].tokens.tolist() for i in spoken])
            for i, score in zip(spoken, raw, strict=True):
                flat[i] = dataclasses.replace(flat[i], score=float(score))
            if self._settings.length_bound:
                lengths = np.array([flat[i].length for i in spoken], np.float64)
                raw = without_slope(raw, lengths, bound=self._settings.length_bound)
            self.running = self.running.seen(raw)
            for i, score in zip(spoken, self.running.normalised(raw, self._settings.clip).tolist(), strict=True):
                rewards["model"][i] = score
        areas = [_domain(t.problem.task) for t in flat]
        totals = mixture.mixed(rewards, areas, {found: self._weights.get(found, self._everywhere) for found in areas})
        judged = iter([dataclasses.replace(t, reward=total) for t, total in zip(flat, totals, strict=True)])
        return [[next(judged) for _ in group] for group in groups]

    def state(self) -> dict[str, Any]:
        """What the scores so far have taught, JSON-able."""
        return dataclasses.asdict(self.running)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a saved `state`."""
        self.running = Running(**state)


def _domain(task: str) -> str:
    return task if worlds.is_world(task) else area(task)
