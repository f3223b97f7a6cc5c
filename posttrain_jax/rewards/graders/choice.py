"""Multiple choice."""

from __future__ import annotations

import re
from collections.abc import Mapping

from posttrain_jax.rewards.graders.answer import final, plain
from posttrain_jax.rewards.verdict import Verdict, judged, wrong

LETTERS = re.compile(r"[(\[]?([A-Z](?:\s*(?:,|and|、|和)?\s*[A-Z])*)[)\]]?(?:\s*[.:)、]\s*(.*))?")


def choice(text: str, expected: str, *, options: Mapping[str, str] | None = None) -> Verdict:
    """Right if the final answer names the letters of ``expected`` ("C", or "AC" where several are right) and no more.

    A letter may be followed by the text of its option, and the text may stand alone, if ``options`` are told: a
    letter with another option's text is wrong.
    """
    try:
        answer = final(text)
    except ValueError as problem:
        return wrong(str(problem))
    named = plain(answer)
    options = {letter: plain(option).casefold() for letter, option in (options or {}).items()}
    found = LETTERS.fullmatch(named)
    if not found:
        alone = [letter for letter, option in options.items() if option == named.casefold()]
        return judged(alone == [expected], "not one of the options' letters", answer)
    letters = re.findall(r"[A-Z]", found[1])
    if len(set(letters)) < len(letters):
        return wrong("a letter named twice", answer)
    if found[2] and (len(letters) > 1 or options.get(letters[0]) != found[2].casefold()):
        return wrong("a letter with text that is not its option's", answer)
    return judged(set(letters) == set(expected), "another choice", answer)
