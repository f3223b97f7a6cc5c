"""An answer that is still being written, told piece by piece so that the pieces add up to the whole."""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain_jax.chat.format import Chat


class UnfoldingText:
    """Plain text, without the stop token."""

    def __init__(self, chat: Chat):
        self._chat, self._said = chat, 0

    def more(self, tokens: Sequence[int] | np.ndarray, final: bool) -> str:
        """What is new in the text of all tokens so far; a character that is cut waits for its rest."""
        text = text_of(self._chat, tokens, final)
        said, self._said = self._said, len(text)
        return text[said:]


class UnfoldingMessage:
    """An assistant's message: reasoning and content as soon as it is certain which of them it is.

    What has been told is never taken back. Markup that may turn out to be a call, or to end reasoning that nobody
    opened, waits until it is read; calls are told whole, with the last piece.
    """

    def __init__(self, chat: Chat, tools: Sequence[Mapping[str, Any]], thinking: bool):
        self._chat, self._tools, self._thinking = chat, tools, thinking
        self._marks = (*chat.format.special_tokens, chat.format.call_mark)
        self._said = {"reasoning_content": "", "content": ""}

    def more(self, tokens: Sequence[int] | np.ndarray) -> dict[str, str]:
        """The fields that have grown, each with what is new."""
        text = text_of(self._chat, tokens, final=False)
        ends = [self._parse(text + mark) for mark in ("", *self._marks)]
        certain = {name: self._certain([end[name] for end in ends]) for name in self._said}
        return self._grown(certain)

    def end(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The rest of a message that has been read in whole."""
        grown: dict[str, Any] = self._grown({name: message[name] for name in self._said})
        calls = message.get("tool_calls") or ()
        if calls:
            grown["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
        return grown

    def _parse(self, text: str) -> dict[str, Any]:
        return self._chat.parse(text, self._tools, self._thinking)

    def _certain(self, readings: list[str]) -> str:
        """What all readings begin with, up to markup, to what may become markup, and to space at the end."""
        common = os.path.commonprefix(readings)
        common = common[: min((at for mark in self._marks if (at := common.find(mark)) >= 0), default=None)]
        begun = max(
            (size for mark in self._marks for size in range(1, len(mark)) if common.endswith(mark[:size])), default=0
        )
        return common[: len(common) - begun].rstrip()

    def _grown(self, fields: Mapping[str, str]) -> dict[str, str]:
        grown = {}
        for name, value in fields.items():
            if len(value) > len(self._said[name]):
                grown[name] = value[len(self._said[name]) :]
                self._said[name] = value
        return grown


def text_of(chat: Chat, tokens: Sequence[int] | np.ndarray, final: bool) -> str:
    """The text of sampled tokens, without the stop token that may end them."""
    shown = [int(token) for token in tokens]
    if shown and shown[-1] in chat.stop_tokens:
        shown = shown[:-1]
    return codecs.getincrementaldecoder("utf-8")("replace").decode(chat.tokenizer.decode_bytes(shown), final)
