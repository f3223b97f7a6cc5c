"""The form of a response: thinking that ends, then an answer."""

from __future__ import annotations

import re

from posttrain_jax.rewards.graders.answer import boxes
from posttrain_jax.rewards.verdict import Verdict, right, wrong


def formatted(text: str, *, tags: tuple[str, str] = ("<think>", "</think>"), boxed: bool = False) -> Verdict:
    """Right if the thinking opens at the start, closes once, says something, and an answer follows.

    Args:
      text: the whole response.
      tags: the marks round the thinking.
      boxed: the answer has exactly one box, and something in it.
    """
    opening, closing = tags
    if text.count(opening) != 1 or text.count(closing) != 1 or not text.lstrip().startswith(opening):
        return wrong("not one thinking at the start", well_formed=False)
    thinking, answer = (part.strip() for part in text.split(closing))
    if not re.search(r"\w", thinking.removeprefix(opening)):
        return wrong("empty thinking", answer, well_formed=False)
    if not re.search(r"[^\W_]", answer):
        return wrong("no answer", answer, well_formed=False)
    if boxed and (len(boxes(answer)) != 1 or not boxes(answer)[0]):
        return wrong("not one box", answer, well_formed=False)
    return right(answer)
