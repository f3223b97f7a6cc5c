"""What a judge is, and one that is asked in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import xxhash

from posttrain_jax.rewards.judges.rubrics import (
    Rubric,
    compare_messages,
    grade_messages,
    read_comparison,
    read_grade,
)

Ask = Callable[[list[dict[str, Any]], int], Awaitable[str]]
"""Messages and a seed to the answer's text, reasoning left out; raises `JudgeFailed`."""


class JudgeFailed(Exception):
    """The judge could not be asked, or did not answer: says nothing of what was to be judged."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """``verdict`` is +1 where the first answer is better, -1 the second, 0 neither; None if it cannot be read."""

    verdict: int | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Grade:
    """``grade`` is 1 (wrong) to 5 (right); None if it cannot be read."""

    grade: int | None
    reason: str = ""


class Judge(Protocol):
    """Says which of two answers is better, or how good one is."""

    async def compare(self, question: str, a: str, b: str, rubrics: Sequence[Rubric], seed: int) -> Comparison:
        """The better of two answers; raises `JudgeFailed`."""
        ...

    async def grade(self, question: str, answer: str, reference: str, seed: int) -> Grade:
        """An answer's grade beside the right answer; raises `JudgeFailed`."""
        ...


class Prompted:
    """A judge that is asked in words and answers in words: any model, wherever it is."""

    def __init__(self, ask: Ask):
        self._ask = ask

    async def compare(self, question: str, a: str, b: str, rubrics: Sequence[Rubric], seed: int) -> Comparison:
        """See `Judge`."""
        text = await self._ask(compare_messages(question, a, b, rubrics), seed)
        return Comparison(read_comparison(text), text)

    async def grade(self, question: str, answer: str, reference: str, seed: int) -> Grade:
        """See `Judge`."""
        text = await self._ask(grade_messages(question, answer, reference), seed)
        return Grade(read_grade(text), text)


def seed_of(seed: int, *place: int) -> int:
    """A seed of 32 bits for one of many questions."""
    return xxhash.xxh32_intdigest("/".join(map(str, (seed, *place))).encode())
