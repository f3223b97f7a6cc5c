"""What a benchmark asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from posttrain_jax.rewards.verdict import Verdict

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Question:
    """One question and what judges its answer.

    Attributes:
      benchmark: whose it is.
      subset: the part of the benchmark that it counts to.
      name: what it is called there.
      messages: what is asked.
      grade: judges a parsed assistant message; may be called from any thread.
      tools: JSON schemas of the functions on offer.
      expected: the answer in words, for who reads samples.
    """

    benchmark: str
    subset: str
    name: str
    messages: list[dict[str, Any]]
    grade: Callable[[Message], Verdict]
    tools: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    expected: str = ""


def user(text: str) -> list[dict[str, Any]]:
    """One message of a user's."""
    return [{"role": "user", "content": text}]


def content(message: Message) -> str:
    """The text of an answer, behind its thinking."""
    return str(message.get("content") or "")
