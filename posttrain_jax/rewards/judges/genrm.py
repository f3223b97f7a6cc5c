"""MiniMax-M1's generative reward model (arXiv 2506.13585, section 4.2): scores beside a reference, for one answer each.

Where the true answer is known, five grades; where it is not, better, like or worse than a reference answer, in both
orders. The numbers of normalisation and clipping are not published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from posttrain_jax.rewards.judges.judge import Judge, JudgeFailed
from posttrain_jax.rewards.judges.rubrics import Rubric
from posttrain_jax.rewards.judges.self_critique import Outcome, both_orders


async def graded(judge: Judge, question: str, answer: str, truth: str, seed: int) -> Outcome:
    """Grade g as the score (g - 1) / 4; ½ where the judge gave none."""
    try:
        found = await judge.grade(question, answer, truth, seed)
    except JudgeFailed as failure:
        return Outcome(None, failed=str(failure) or "no reason given")
    return Outcome(0.5, malformed=1) if found.grade is None else Outcome((found.grade - 1) / 4)


async def compared(
    judge: Judge, question: str, answer: str, reference: str, rubrics: Sequence[Rubric], seed: int
) -> Outcome:
    """Better, like or worse than the reference as the score 1, ½ or 0; ½ where the verdict does not turn."""
    return await both_orders(judge, question, answer, reference, rubrics, seed)


def normalised(scores: Sequence[float | None], clip: float) -> list[float | None]:
    """Scores over a batch less their mean, over their deviation, kept within ± ``clip`` (0 leaves them unbounded).

    None stays None and counts for nothing; equal scores become 0.
    """
    given = [score for score in scores if score is not None]
    mean = math.fsum(given) / max(len(given), 1)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in given) / max(len(given), 1))
    bound = clip or math.inf
    scale = 1.0 / deviation if deviation > 1e-9 else 0.0
    return [None if s is None else min(max((s - mean) * scale, -bound), bound) for s in scores]
