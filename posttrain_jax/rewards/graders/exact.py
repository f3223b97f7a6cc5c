"""Answers that are right letter for letter."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain_jax.rewards.graders.answer import final, plain
from posttrain_jax.rewards.verdict import Verdict, judged, wrong


def exact(text: str, expected: str | Sequence[str], *, case: bool = False) -> Verdict:
    """Right if the final answer is ``expected``, or one of several, but for spaces and, unless ``case``, for case."""
    accepted = [expected] if isinstance(expected, str) else expected
    fold = str if case else str.casefold
    try:
        answer = final(text)
    except ValueError as problem:
        return wrong(str(problem))
    return judged(fold(plain(answer)) in {fold(plain(e)) for e in accepted}, "not the answer", answer)
