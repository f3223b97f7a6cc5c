"""The final answer of a response: what the graders of short answers read."""

from __future__ import annotations

import re

LONGEST_ANSWER = 1000  # characters
NARROW = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20}  # full-width forms
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
HASHES = re.compile(r"^####[ \t]*(.*)$", re.M)
SAID = re.compile(r"(?:answer|答案)\s*(?:is\b|[:：]|是|为)[ \t]*(.*)", re.I)


def boxes(text: str) -> list[str]:
    r"""What stands in each ``\boxed{…}``, braces matched; one that never closes is left out."""
    found = []
    for opening in BOX.finditer(text):
        depth = 1
        for end in range(opening.end(), min(len(text), opening.end() + LONGEST_ANSWER + 1)):
            depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
            if depth == 0:
                found.append(text[opening.end() : end].strip())
                break
    return found


def final(text: str) -> str:
    r"""The one answer a response gives: its box, else "#### …", else "Answer: …", else all of it.

    Raises:
      ValueError: no answer, several that differ, or one longer than `LONGEST_ANSWER` characters.
    """
    given = boxes(text) or HASHES.findall(text) or SAID.findall(text) or [text]
    given = [answer.strip() for answer in given]
    if len(set(map(plain, given))) > 1:
        raise ValueError("several answers")
    if not given[0]:
        raise ValueError("no answer")
    if len(given[0]) > LONGEST_ANSWER:
        raise ValueError("the answer is too long")
    return given[0]


def plain(text: str) -> str:
    """The text with full-width forms as their plain ones, single spaces, and nothing round it but what it means.

    Look-alikes of other scripts stay what they are, and so do superscripts: 4² is not 42.
    """
    text = " ".join(text.translate(NARROW).split())
    text = re.sub(r"^\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}$", r"\1", text.strip("$*` "))
    return text.strip("$*` ").removesuffix(".").removesuffix("。").strip()
