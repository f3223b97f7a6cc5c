"""Following instructions that a rule can check."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_jax.errors import UserError
from posttrain_jax.rewards.graders.constraints import CHECKS, followed, words
from posttrain_jax.rewards.verdict import Verdict, right, wrong

LONGEST_RESPONSE = 50_000  # characters
LONGEST_WORD = 100  # characters; longer "words" are there to be counted as one


def instructions(
    text: str,
    names: Sequence[str],
    arguments: Sequence[Mapping[str, Any]],
    *,
    prompt: str = "",
    partial: bool = False,
) -> Verdict:
    """Right if every constraint is followed, in a response that says something.

    Args:
      text: the response.
      names: of the constraints; `constraints.CHECKS` has them.
      arguments: of each; those that are None count as absent, as in IFEval's files.
      prompt: what was asked; a response that is no more than that is wrong, though it may follow the constraints.
      partial: reward the share that is followed.

    Raises:
      UserError: an unknown constraint, or arguments it does not take.
    """
    for name in names:
        if name not in CHECKS:
            near = difflib.get_close_matches(name, CHECKS, 1, 0.0)[0]
            raise UserError(f"constraint {name!r} is unknown; the nearest is {near!r}")
    said = words(_squeezed(text).replace(_squeezed(prompt), " ") if prompt else text)
    if not said or len(text) > LONGEST_RESPONSE or max(map(len, said)) > LONGEST_WORD:
        return wrong("nothing said" if not said else "too long", text[:200])
    broken_ones = []
    for name, given in zip(names, arguments, strict=True):
        try:
            if not followed(name, text, {key: value for key, value in given.items() if value is not None}):
                broken_ones.append(name)
        except TypeError as mistake:
            raise UserError(f"constraint {name!r} does not take {dict(given)}: {mistake}") from None
    if not broken_ones:
        return right(text[:200])
    share = 1 - len(broken_ones) / len(names) if partial else 0.0
    return wrong(f"not followed: {', '.join(broken_ones)}", text[:200], reward=share)


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()
