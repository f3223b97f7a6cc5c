"""The temperature that responses are sampled at, step by step: it stays, it falls (Kimi K2), or it rises (GLM-4.5).

Kimi K2 (arXiv 2507.20534, section 3.2.3) begins high, to explore, and ends low; neither numbers nor the curve are
published, and half a cosine is ours. GLM-4.5 (arXiv 2508.06471, section 3.2) raises it when rewards level off, to the
highest temperature that costs at most a hundredth on questions kept for it; how levelling off is told, is ours.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from flax import nnx

from posttrain_jax.run.recipe import Sampling

STEP = 0.1  # between the temperatures that are tried


class Heat:
    """A stage's temperature.

    Attributes:
      now: the temperature, as far as it rose.
      rewards: mean rewards of the steps since it was last looked at.
    """

    def __init__(self, settings: Sampling, steps: int, measure: Callable[[nnx.State, float], float]):
        """``measure`` tells the share of right responses that weights give at a temperature."""
        self._settings, self._steps, self._measure = settings, steps, measure
        self.now, self.rewards = settings.temperature, list[float]()

    def at(self, weights: nnx.State, number: int) -> float:
        """The temperature of step ``number``, counted from 1, which ``weights`` sample."""
        first, last = self._settings.temperature, self._settings.final
        if last:
            return last + (first - last) * (1 + math.cos(math.pi * (number - 1) / max(1, self._steps - 1))) / 2
        if self._level():
            self.now, self.rewards = self._highest(weights), []
        return self.now

    def observe(self, reward: float) -> None:
        """Takes in the mean reward of a step."""
        if span := self._settings.plateau:
            self.rewards = [*self.rewards, reward][-2 * span :]

    def state(self) -> dict[str, Any]:
        """Where it stands, JSON-able."""
        return {"now": self.now, "rewards": list(self.rewards)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a saved `state`."""
        self.now, self.rewards = state["now"], list(state["rewards"])

    def _level(self) -> bool:
        span = self._settings.plateau
        if not span or len(self.rewards) < 2 * span:
            return False
        return statistics.fmean(self.rewards[span:]) <= statistics.fmean(self.rewards[:span])

    def _highest(self, weights: nnx.State) -> float:
        """The highest temperature, up to the settings' bound, at which no more is lost than may be."""
        count = math.floor((self._settings.highest - self.now) / STEP + 1e-6)
        tried = [round(self.now + STEP * i, 6) for i in range(1, count + 1)]
        if not tried:
            return self.now
        least = self._measure(weights, self.now) - self._settings.most_lost
        return max([self.now, *(heat for heat in tried if self._measure(weights, heat) >= least)])
