"""The reward of a judged response as the recipe mixes it: its verifier's, and a reward model's score."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flax import nnx

from posttrain_jax.data.tasks import AREAS, area
from posttrain_jax.rewards import mixture
from posttrain_jax.rewards.length_bias import without_slope
from posttrain_jax.rewards.running import Running
from posttrain_jax.run.recipe import Reward
from posttrain_jax.stages.experience import Trajectory
from posttrain_jax.stages.reward_model import Scorer


class Scoring:
    """Mixes rewards. A score is freed of what length alone earns it, normalised by all scores so far, and clipped.

    Attributes:
      running: mean and deviation of the scores so far.
    """

    def __init__(self, settings: Reward, scorer: Scorer):
        self._settings, self._scorer = settings, scorer
        self._everywhere = everywhere = {"verifier": settings.verifier_weight, "model": settings.model_weight}
        self._weights = mixture.weights(everywhere, settings.domains, sorted(set(AREAS.values())))
        self._asks = any(own["model"] > 0 for own in self._weights.values())
        self.running = Running()

    def __call__(self, model: nnx.State | None, groups: list[list[Trajectory]]) -> list[list[Trajectory]]:
        """The groups with their mixed rewards, and the raw scores of ``model`` where it weighs anything."""
        flat = [trajectory for group in groups for trajectory in group]
        rewards = {"verifier": [t.reward for t in flat]}
        if self._asks and model is not None:
            raw = self._scorer(model, [[*t.prompt, *t.completion.tokens.tolist()] for t in flat])
            flat = [dataclasses.replace(t, score=float(score)) for t, score in zip(flat, raw, strict=True)]
            if self._settings.length_bound:
                lengths = np.array([len(t.completion.tokens) for t in flat], np.float64)
                raw = without_slope(raw, lengths, bound=self._settings.length_bound)
            self.running = self.running.seen(raw)
            rewards["model"] = self.running.normalised(raw, self._settings.clip).tolist()
        areas = [area(t.problem.task) for t in flat]
        totals = mixture.mixed(rewards, areas, {found: self._weights.get(found, self._everywhere) for found in areas})
        judged = iter([dataclasses.replace(t, reward=total) for t, total in zip(flat, totals, strict=True)])
        return [[next(judged) for _ in group] for group in groups]

    def state(self) -> dict[str, Any]:
        """What the scores so far have taught, JSON-able."""
        return dataclasses.asdict(self.running)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a saved `state`."""
        self.running = Running(**state)
