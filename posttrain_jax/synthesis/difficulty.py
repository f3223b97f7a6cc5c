"""How hard tasks are, from how many attempts at them passed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

Name = TypeVar("Name")


def pass_at(k: int, tried: int, passed: int) -> float:
    """The unbiased estimate that one of ``k`` attempts passes (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises:
      ValueError: fewer than ``k`` attempts, or counts that cannot be.
    """
    if not 0 <= passed <= tried or not 1 <= k <= tried:
        raise ValueError(f"pass@{k} of {passed} in {tried} attempts")
    return 1.0 - math.comb(tried - passed, k) / math.comb(tried, k)


def learnable(
    counts: Mapping[Name, tuple[int, int]], *, k: int = 1, lowest: float = 0.0, highest: float = 1.0
) -> list[Name]:
    """Tasks that are neither hopeless nor done with: pass@k strictly between the bounds, hardest first.

    Args:
      counts: attempts and passes by task.
      k: attempts that pass@k allows.
      lowest, highest: bounds.
    """
    rates = {name: pass_at(k, *count) for name, count in counts.items() if count[0] >= k}
    return sorted((name for name, rate in rates.items() if lowest < rate < highest), key=rates.__getitem__)
