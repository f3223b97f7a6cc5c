"""The closed loop of Kimi K2's critic (arXiv 2507.20534, section 3.2.2): verifiable rollouts keep its judgement honest.

What the verifier knows of a pair is held against the critic's verdict, and is what the critic is trained on next.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax.rewards.judges.rubrics import Rubric, compare_messages, verdict_line
from posttrain_jax.rewards.judges.self_critique import Outcome, Pair


def agreement(outcomes: Mapping[Pair, Outcome], correct: Sequence[bool]) -> tuple[float, int]:
    """Over judged pairs of a right and a wrong response: how often the critic chose the right one (ties ½), and of how
    many."""
    agreed = [
        found.score if correct[i] else 1.0 - found.score
        for (i, j), found in outcomes.items()
        if found.score is not None and correct[i] != correct[j]
    ]
    return sum(agreed), len(agreed)


def conversations(
    question: str, answers: Sequence[str], correct: Sequence[bool], rubrics: Sequence[Rubric], *, most: int, seed: int
) -> list[dict[str, Any]]:
    """Records for the critic to learn from: pairs of a right and a wrong answer, in both orders, with the verdict.

    Args:
      answers, correct: a judged group and what the verifier said of it.
      most: pairs taken, drawn with ``seed``; an answer's text counts once.

    Returns:
      Two ``{"messages": ...}`` for each pair; none for a group that is all right or all wrong.
    """
    known = dict(zip(answers, correct, strict=True))
    right, wrong = ([text for text, good in known.items() if good == kind] for kind in (True, False))
    pairs = [(good, bad) for good in right for bad in wrong]
    chosen = random.Random(seed).sample(pairs, min(most, len(pairs)))
    return [record for good, bad in chosen for record in _records(question, good, bad, rubrics)]


def _records(question: str, good: str, bad: str, rubrics: Sequence[Rubric]) -> list[dict[str, Any]]:
    return [
        {"messages": [*compare_messages(question, a, b, rubrics), _lesson(verdict)]}
        for a, b, verdict in ((good, bad, 1), (bad, good, -1))
    ]


def _lesson(verdict: int) -> dict[str, Any]:
    """The critic's answer, with a reason: a family that always thinks would else have to write the verdict as one."""
    right, wrong = "AB" if verdict > 0 else "BA"
    reasoning = f"Answer {right} is right and answer {wrong} is wrong."
    return {"role": "assistant", "reasoning_content": reasoning, "content": verdict_line(verdict)}
