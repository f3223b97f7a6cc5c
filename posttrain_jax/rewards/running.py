"""Mean and deviation of all scores so far, by which new ones are measured."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Running:
    """Of ``count`` numbers seen: their mean, and the sum of squares around it. JSON-able by its fields."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def seen(self, numbers: Float[np.ndarray, " more"]) -> Running:
        """With more numbers (Chan, Golub & LeVeque 1983, equations 2.1)."""
        numbers = np.asarray(numbers, np.float64)
        if not len(numbers):
            return self
        total, mean = self.count + len(numbers), float(numbers.mean())
        squares = float(np.square(numbers - mean).sum())
        apart = mean - self.mean
        return Running(
            total,
            self.mean + apart * len(numbers) / total,
            self.squares + squares + apart**2 * self.count * len(numbers) / total,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation of the numbers seen."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def normalised(self, numbers: Float[np.ndarray, " n"], clip: float) -> Float[np.ndarray, " n"]:
        """Distances from the mean in deviations, none larger than ``clip``; all 0 while nothing has varied."""
        if self.deviation == 0.0:
            return np.zeros(len(numbers))
        return np.clip((np.asarray(numbers, np.float64) - self.mean) / self.deviation, -clip, clip)
