"""Checking files of records before anything is trained: every line is read and encoded, or refused with its reason."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from posttrain_jax import chat as chats
from posttrain_jax.data import templates
from posttrain_jax.data.beginnings import without_reasoning
from posttrain_jax.data.files import Lines, decoded
from posttrain_jax.data.records import Record
from posttrain_jax.errors import UserError

FAMILY = "minimax_m2"  # of records that were made for none


class Outcome(NamedTuple):
    """What became of one line.

    Attributes:
      where: its file and number.
      line: its text.
      record: what it became; None when it was refused.
      notes: what was mended or taken by default, or why it was refused.
      tokens: of the conversation, of a pair with the better answer.
      trained: those that the assistant has to produce.
    """

    where: str
    line: bytes
    record: Record | None
    notes: list[str]
    tokens: int = 0
    trained: int = 0


@dataclass
class Tally:
    """The lines of one template: how many, in which family, their tokens."""

    lines: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    families: set[str] = field(default_factory=set)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome, family: str) -> None:
        self.lines += 1
        self.tokens += outcome.tokens
        self.trained += outcome.trained
        self.longest = max(self.longest, outcome.tokens)
        self.families.add(family)
        self.notes.update(outcome.notes)


def check(path: str, family: str | None = None) -> Iterator[Outcome]:
    """Every line of a file, read and encoded in ``family``'s chat format, or in the one that it was made for.

    Raises:
      UserError: a file that cannot be read at all.
    """
    lines = Lines(path)
    for index in range(len(lines)):
        line = lines[index]
        try:
            record, notes = templates.read(decoded(line))
            tokens, trained = sizes(record, family)
            notes = notes + thoughtless(record, family)
        except (ValueError, UserError) as error:
            yield Outcome(lines.where(index), line, None, [str(error)])
        else:
            yield Outcome(lines.where(index), line, record, notes, tokens, trained)


def family_of(record: Record, family: str | None) -> str:
    """The family in whose format a record is encoded."""
    return family or record.family or FAMILY


def thoughtless(record: Record, family: str | None) -> list[str]:
    """A note where answers of a record that thinks bring no reasoning, and the family writes some."""
    if not (record.thinking and chat_for(record, family).thinks and without_reasoning(record.messages)):
        return []
    return ['no reasoning before an answer: an empty thought is trained, unless the record says "mode": "non-thinking"']


def chat_for(record: Record, family: str | None) -> chats.Chat:
    """The chat in which a record is encoded."""
    name = family_of(record, family)
    return chat_of(name, record.variant if record.family == name else None)


def sizes(record: Record, family: str | None) -> tuple[int, int]:
    """Tokens of a record, and how many are trained on; both sides of a pair have to be writable.

    Raises:
      UserError: the family's format cannot write it.
    """
    chat = chat_for(record, family)
    answers = [side for side in (record.rejected, record.chosen) if side is not None] or [[]]
    longest = trained = 0
    for answer in answers:
        messages = [*record.messages, *answer]
        ends = chat.beginnings(messages, record.thinking)
        asked = ((messages[:end], False) for end in ends) if ends else [(messages, True)]  # a prompt alone
        masks = [chat.encode(read, record.tools, record.thinking, prompt)[1] for read, prompt in asked]
        longest, trained = max(map(len, masks)), sum(map(sum, masks)) if ends else 0
    return longest, trained


@functools.cache
def chat_of(family: str, variant: str | None) -> chats.Chat:
    """The chat of a family, loaded once."""
    return chats.for_family(family, variant)
