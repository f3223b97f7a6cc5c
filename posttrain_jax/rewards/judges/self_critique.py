"""Kimi K2's self-critique (arXiv 2507.20534, section 3.2.2): a critic ranks the answers to one prompt in pairs.

How ranks become rewards is not published. Here a response's reward is its win rate over its opponents. Each pair is
judged in both orders; a verdict that does not turn with them is a tie.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Mapping, Sequence

from posttrain_jax.rewards.judges.judge import Comparison, Judge, JudgeFailed, seed_of
from posttrain_jax.rewards.judges.rubrics import Rubric

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A pair judged in both orders.

    Attributes:
      score: 1 where the first response won, 0 where the second did, ½ for a tie; None if the judge failed.
      consistent: the verdict turned with the order; None where there were not two verdicts.
      malformed: answers of the judge, out of two, without a verdict.
      failed: why the judge could not be asked.
      asked: whether it had to be.
    """

    score: float | None
    consistent: bool | None = None
    malformed: int = 0
    failed: str = ""
    asked: bool = True


def outcome(straight: Comparison, swapped: Comparison) -> Outcome:
    """Both orders as one: only verdicts that agree on a winner make one."""
    one, two = straight.verdict, swapped.verdict
    if one is None or two is None:
        return Outcome(0.5, malformed=(one is None) + (two is None))
    return Outcome(0.5 + 0.5 * one if one == -two else 0.5, consistent=one == -two)


def pairings(count: int, opponents: int, seed: int) -> list[Pair]:
    """Who meets whom: everyone all others (``opponents`` = 0), or that many, neighbours on a ring in random order.

    Where both numbers are odd there is no such schedule, and everyone meets one more.
    """
    everyone = [(i, j) for i in range(count) for j in range(i + 1, count)]
    if not 0 < opponents < count - 1:
        return everyone
    ring = list(range(count))
    random.Random(seed).shuffle(ring)
    offsets = list(range(1, opponents // 2 + 1))
    if opponents % 2:
        offsets.append(opponents // 2 + 1 if count % 2 else count // 2)
    met = {(i, (i + offset) % count) for offset in offsets for i in range(count)}
    return sorted({(min(ring[i], ring[j]), max(ring[i], ring[j])) for i, j in met})


async def both_orders(judge: Judge, question: str, a: str, b: str, rubrics: Sequence[Rubric], seed: int) -> Outcome:
    """One pair, judged twice. Equal answers are a tie without asking."""
    if a == b:
        return Outcome(0.5, asked=False)
    found = await asyncio.gather(
        judge.compare(question, a, b, rubrics, seed_of(seed, 0)),
        judge.compare(question, b, a, rubrics, seed_of(seed, 1)),
        return_exceptions=True,
    )
    comparisons = []
    for one in found:
        if isinstance(one, JudgeFailed):
            return Outcome(None, failed=str(one) or "no reason given")
        if isinstance(one, BaseException):
            raise one
        comparisons.append(one)
    return outcome(*comparisons)


async def rank(
    judge: Judge, question: str, answers: Sequence[str], rubrics: Sequence[Rubric], *, opponents: int = 0, seed: int
) -> dict[Pair, Outcome]:
    """The group's pairs (lower index first) and how they came out, judged at the same time."""
    pairs = pairings(len(answers), opponents, seed)
    outcomes = await asyncio.gather(
        *(both_orders(judge, question, answers[i], answers[j], rubrics, seed_of(seed, i, j)) for i, j in pairs)
    )
    return dict(zip(pairs, outcomes, strict=True))


def win_rates(count: int, outcomes: Mapping[Pair, Outcome]) -> list[float | None]:
    """Of each response the mean score over its opponents, ties ½; None where the judge failed in all of its pairs."""
    scores: list[list[float]] = [[] for _ in range(count)]
    for (i, j), found in outcomes.items():
        if found.score is not None:
            scores[i].append(found.score)
            scores[j].append(1.0 - found.score)
    return [sum(mine) / len(mine) if mine else None for mine in scores]
