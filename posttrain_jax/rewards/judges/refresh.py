"""The closed loop of Kimi K2's critic (arXiv 2507.20534, section 3.2.2): verifiable rollouts keep its judgement honest.

What the verifier knows of a pair is held against the critic's verdict, and is what the critic is trained on next.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from posttrain_jax.rewards.judges.rubrics import Rubric, compare_messages, verdict_line
from posttrain_jax.rewards.judges.self_critique import Outcome, Pair


class Lesson(NamedTuple):
    """A question to the critic, and the verdict that agrees with the verifier: +1 or -1."""

    messages: list[dict[str, Any]]
    verdict: int


def agreement(outcomes: Mapping[Pair, Outcome], correct: Sequence[bool]) -> tuple[float, int]:
    """Over judged pairs of a right and a wrong response: how often the critic chose the right one (ties ½), and of how
    many."""
    agreed = [
        found.score if correct[i] else 1.0 - found.score
        for (i, j), found in outcomes.items()
        if found.score is not None and correct[i] != correct[j]
    ]
    return sum(agreed), len(agreed)


def lessons(
    question: str, answers: Sequence[str], correct: Sequence[bool], rubrics: Sequence[Rubric], *, most: int, seed: int
) -> list[Lesson]:
    """Questions to the critic whose verdict is known: pairs of a right and a wrong answer, in both orders.

    Args:
      answers, correct: a judged group and what the verifier said of it.
      most: pairs taken, drawn with ``seed``; an answer's text counts once.

    Returns:
      Two for each pair, one after the other; none for a group that is all right or all wrong.
    """
    known = dict(zip(answers, correct, strict=True))
    right, wrong = ([text for text, good in known.items() if good == kind] for kind in (True, False))
    pairs = [(good, bad) for good in right for bad in wrong]
    chosen = random.Random(seed).sample(pairs, min(most, len(pairs)))
    return [
        Lesson(compare_messages(question, a, b, rubrics), verdict)
        for good, bad in chosen
        for a, b, verdict in ((good, bad, 1), (bad, good, -1))
    ]


def conversation(lesson: Lesson) -> dict[str, Any]:
    """A record of `data.sources` for a critic that cannot judge yet: the lesson, and its verdict with a reason.

    A family that always thinks would else have to write the verdict as one.
    """
    right, wrong = "AB" if lesson.verdict > 0 else "BA"
    reasoning = f"Answer {right} is right and answer {wrong} is wrong."
    answer = {"role": "assistant", "reasoning_content": reasoning, "content": verdict_line(lesson.verdict)}
    return {"messages": [*lesson.messages, answer]}
