"""Conversations as they are learnt: an answer that its format alters afterwards, at the end of a sample of its own."""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrain_jax.chat.messages import reasoning_and_content
from posttrain_jax.data.sources import TASK_RECORDS, JoinedSource, Source

if TYPE_CHECKING:
    from posttrain_jax.chat.format import Chat, Message


class Beginnings:
    """The records of a source, each as the `Chat.beginnings` that together train all its answers: most often itself.

    Attributes:
      answers: how many there are in records that think.
      bare: those of them that bring no reasoning.
    """

    def __init__(self, source: Source, chat: Chat):
        self._source, self._thinks = source, chat.thinks
        self._records, self._lengths = array.array("q"), array.array("q")
        self.answers = self.bare = 0
        for index in range(len(source)):
            record = source[index]
            messages, thinking = record["messages"], record.get("thinking", True)
            for length in chat.beginnings(messages, thinking):
                self._records.append(index)
                self._lengths.append(length)
            if thinking:
                self.answers += sum(message["role"] == "assistant" for message in messages)
                self.bare += without_reasoning(messages)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._source[self._records[index]]
        return {**record, "messages": record["messages"][: self._lengths[index]]}

    def where(self, index: int) -> str:
        return self._source.where(self._records[index])

    def remarks(self) -> list[str]:
        """What whoever trains on the records should know."""
        more, found = len(self) - len(self._source), []
        if self.bare and self._thinks:
            found.append(
                f"{self.bare:,} of {self.answers:,} answers bring no reasoning, so the model learns to think nothing "
                'before them; records with "mode": "non-thinking" leave its thinking as it is'
            )
        if more:
            found.append(
                f"{more:,} more samples than records ({len(self._source):,}): the chat format leaves reasoning out of "
                "earlier answers, so each of those is learnt at the end of a sample of its own"
            )
        return found


def without_reasoning(messages: Sequence[Message]) -> int:
    """How many answers bring none."""
    said = [(i, message) for i, message in enumerate(messages) if message["role"] == "assistant"]
    return sum(not reasoning_and_content(message, i)[0].strip() for i, message in said)


def learnt(source: Source, chat: Chat) -> Source:
    """The source as `Beginnings`; generated records, which have one exchange, stay as they are."""
    if isinstance(source, JoinedSource):
        return JoinedSource([learnt(each, chat) for each in source.sources])
    return source if len(source) >= TASK_RECORDS else Beginnings(source, chat)


def remarks(source: Source) -> list[str]:
    """What there is to say about a source, a line each, with the name of where its records begin."""
    if isinstance(source, JoinedSource):
        return [line for each in source.sources for line in remarks(each)]
    if not isinstance(source, Beginnings):
        return []
    return [f"data from {source.where(0)}: {line}" for line in source.remarks()]
