"""Which task and level the next prompt comes from: levels open as they are mastered, effort goes where it teaches."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DECAY = 0.8  # of the running pass rate, for each group observed
PRIOR = 0.5  # pass rate of what was never tried
ENOUGH = 4  # groups at a level before it can be called mastered, or retired
FLOOR = 0.05  # least weight of an open level, so that nothing learned goes unwatched

# how much a (task, level) of a pass rate is worth asking
EFFORTS: dict[str, Callable[[float], float]] = {
    "variance": lambda rate: rate * (1 - rate),  # what is always or never solved has no gradient
    "failure": lambda rate: 1 - rate,  # prioritised sampling (Kimi K1.5, arXiv 2501.12599, section 2.3.4)
    "uniform": lambda rate: 1.0,
}
BUCKETS = {"hopeless": 0.1, "hard": 0.4, "medium": 0.7, "easy": 0.9, "solved": 1.01}  # pass rates below


class Curriculum:
    """A ladder of levels for each task, and a running pass rate for each open level.

    A prompt comes from an open (task, level) with a chance that grows with the ``effort`` that its pass rate is worth.
    A task's next level opens when its top open level is solved at ``promote_at``. A level solved at ``retire_at`` is
    not asked any more while another is left, unless it has a next level to open. (No-positive-resampling, ScaleRL,
    arXiv 2510.13786: of levels, where it has prompts, for here no question comes twice.)

    ``mixture`` says how much each task weighs at a point of the run, from 0 to 1: then tasks are drawn by it, and
    effort only divides a task's share among its levels. ``progress`` is that point: whoever draws moves it.
    """

    def __init__(
        self,
        names: Sequence[str],
        max_level: int,
        promote_at: float,
        seed: int,
        *,
        effort: str = "variance",
        retire_at: float = 1.0,
        mixture: Mapping[str, tuple[float, float]] | None = None,
    ):
        """``mixture`` has a task's weight at the first and at the last step; between them it moves in a line, and a
        task that is not named weighs 1."""
        self.names, self.max_level, self.promote_at, self.seed = tuple(names), max_level, promote_at, seed
        self.effort, self.retire_at, self.mixture, self.progress = effort, retire_at, dict(mixture or {}), 0.0
        self.rates: dict[str, list[float]] = {name: [PRIOR] for name in self.names}
        self.counts: dict[str, list[int]] = {name: [0] for name in self.names}

    def choose(self, draw: int) -> tuple[str, int, int]:
        """(task, level, index) of the ``draw``-th prompt; the index is the draw, so no question comes twice."""
        weights = self.weights()
        [(name, level)] = random.Random(f"{self.seed}/{draw}").choices(list(weights), list(weights.values()))
        return name, level, draw

    def weights(self) -> dict[tuple[str, int], float]:
        """The weight of every (task, level) that may be asked now."""
        cells = [(name, level) for name in self.names for level in range(len(self.rates[name]))]
        shares = {name: self._share(name) for name in self.names}
        cells = [cell for cell in cells if shares[cell[0]] > 0]
        cells = [cell for cell in cells if not self._retired(*cell)] or cells
        worth = {(name, level): max(FLOOR, EFFORTS[self.effort](self.rates[name][level])) for name, level in cells}
        if not self.mixture:
            return worth
        totals = {name: sum(worth[cell] for cell in cells if cell[0] == name) for name in self.names}
        return {cell: shares[cell[0]] * worth[cell] / totals[cell[0]] for cell in cells}

    def observe(self, name: str, level: int, solved: int, tried: int) -> None:
        """Takes in that ``solved`` of ``tried`` responses to a prompt of this task and level were right."""
        rates, counts = self.rates[name], self.counts[name]
        rates[level] = DECAY * rates[level] + (1 - DECAY) * solved / tried
        counts[level] += 1
        top = len(rates) - 1
        if level == top < self.max_level and counts[top] >= ENOUGH and rates[top] >= self.promote_at:
            rates.append(PRIOR)
            counts.append(0)

    def buckets(self) -> dict[str, int]:
        """How many open levels are hopeless, hard, medium, easy and solved by their live pass rates."""
        rates = [rate for each in self.rates.values() for rate in each]
        held = [next(bucket for bucket, below in BUCKETS.items() if rate < below) for rate in rates]
        return {bucket: held.count(bucket) for bucket in BUCKETS}

    def state(self) -> dict[str, Any]:
        """Where every task stands, JSON-able."""
        return copy.deepcopy({"rates": self.rates, "counts": self.counts})

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a saved `state`."""
        saved = copy.deepcopy(state)
        self.rates, self.counts = saved["rates"], saved["counts"]

    def _share(self, name: str) -> float:
        first, last = self.mixture.get(name, (1.0, 1.0))
        return first + (last - first) * self.progress

    def _retired(self, name: str, level: int) -> bool:
        rates, waiting = self.rates[name], level == len(self.rates[name]) - 1 < self.max_level
        solved = self.retire_at < 1 and rates[level] >= self.retire_at and self.counts[name][level] >= ENOUGH
        return solved and not waiting


def mixture(weights: Sequence[str], schedule: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The mixture of ``'gcd=2'``, a weight, and ``'shop=0:1'``, a weight at the first step and one at the last.

    Raises:
      ValueError: says which entry is none, names a task twice, or leaves a moment without any weight.
    """
    found: dict[str, tuple[float, float]] = {}
    for entry, count in [*((each, 1) for each in weights), *((each, 2) for each in schedule)]:
        name, _, told = entry.rpartition("=")
        try:
            ends = [float(number) for number in told.split(":")]
        except ValueError:
            ends = []
        if not name or len(ends) != count or not all(0 <= end < float("inf") for end in ends):
            raise ValueError(f"{entry!r} is no entry; an example is {('gcd=2', 'gcd=2:0.5')[count - 1]!r}")
        if name in found:
            raise ValueError(f"{name!r} has more than one weight")
        found[name] = ends[0], ends[-1]
    return found
