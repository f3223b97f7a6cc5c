"""Faithfulness: quotes and numbers of a response that occur in its sources."""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain_jax.rewards.graders.answer import NARROW
from posttrain_jax.rewards.graders.numeric import DIGITS
from posttrain_jax.rewards.verdict import Verdict, right, wrong

QUOTE = re.compile(r"“([^“”]+)”|\"([^\"\n]+)\"|「([^「」]+)」|『([^『』]+)』|«([^«»]+)»")
NUMBER = re.compile(rf"(?<![\w.])(?:{DIGITS})(?![\w]|\.\d)", re.ASCII)
LIST_MARK = re.compile(r"^\s*\d{1,3}[.)、]\s", re.M)  # the number of an item says nothing of the sources
SHORTEST = 8  # characters of a quote that tells where it comes from; Chinese says as much in half of them


def grounded(text: str, sources: Sequence[str], *, least_quotes: int = 1, longest: int = 4000) -> Verdict:
    """The share of a response's quotes and numbers that occur in the sources; right if all do.

    Args:
      text: the response.
      sources: what it may draw on.
      least_quotes: different quotes of some length that it must have: who claims nothing is not faithful but silent.
      longest: characters of a response; quoting everything is no answer.
    """
    if len(text) > longest:
        return wrong("too long", text[:200])
    read = " ".join(_folded(source) for source in sources)
    quotes = {_folded("".join(groups)).strip(" .,;:!?。，；：！？…") for groups in QUOTE.findall(text)}
    telling = {quote for quote in quotes if sum(1 + ("一" <= c <= "鿿") for c in quote) >= SHORTEST}
    if len(telling) < least_quotes:
        return wrong(f"{len(telling)} quotes, {least_quotes} asked for", text[:200])
    unquoted = LIST_MARK.sub(" ", QUOTE.sub(" ", text))
    numbers = {_value(n) for n in NUMBER.findall(unquoted.translate(NARROW))}
    known = {_value(n) for n in NUMBER.findall(read)}
    false = sorted(quote for quote in quotes if quote not in read) + sorted(numbers - known)
    if not false:
        return right(text[:200])
    claims = len(quotes) + len(numbers)
    return wrong(f"not in the sources: {false[0][:60]!r}", text[:200], reward=1 - len(false) / claims)


def _folded(text: str) -> str:
    return " ".join(text.translate(NARROW).casefold().split())


def _value(number: str) -> str:
    number = number.replace(",", "")
    return (number.rstrip("0").rstrip(".") if "." in number else number).lstrip("0") or "0"
